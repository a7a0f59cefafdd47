//! The Debians that the image is built for.

/// One of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Base {
    pub(crate) suite: &'static str,
    /// PostgreSQL's major version in it.
    pub(crate) major: u32,
    /// Where data is when nobody says otherwise.
    pub(crate) pgdata: &'static str,
}

pub(crate) const BOOKWORM: Base =
    Base { suite: "bookworm", major: 15, pgdata: "/var/lib/postgresql/data" };
pub(crate) const TRIXIE: Base =
    Base { suite: "trixie", major: 17, pgdata: "/var/lib/postgresql/data" };
pub(crate) const FORKY: Base =
    Base { suite: "forky", major: 18, pgdata: "/var/lib/postgresql/18/docker" };

/// The overlay, on an image that has PostgreSQL already.
pub(crate) const OVERLAY: Base =
    Base { suite: "overlay", major: 17, pgdata: "/var/lib/postgresql/data" };

impl Base {
    pub(crate) fn image(self) -> String {
        format!("headrest-test:{}", self.suite)
    }
}

/// Makes a test of each function for each base: `bookworm::NAME`, `trixie::NAME`, `forky::NAME`.
macro_rules! on_every_base {
    ($($name:ident),+ $(,)?) => {
        $crate::bases::on_every_base!(@ bookworm BOOKWORM $($name)+);
        $crate::bases::on_every_base!(@ trixie TRIXIE $($name)+);
        $crate::bases::on_every_base!(@ forky FORKY $($name)+);
    };
    (@ $suite:ident $base:ident $($name:ident)+) => {
        mod $suite {
            $(
                #[test]
                fn $name() {
                    super::$name($crate::bases::$base);
                }
            )+
        }
    };
}
pub(crate) use on_every_base;
