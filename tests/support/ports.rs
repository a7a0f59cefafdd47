//! Ports that no two tests of this machine use at the same time.

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

/// Below the range that the kernel takes for outgoing connections.
const FIRST: u16 = 20_000;
const COUNT: u16 = 10_000;

/// A port of 127.0.0.1, ours as long as this lives. An abstract socket of the same number is the
/// claim: it goes with its process, however that ends.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) number: u16,
    _claim: UnixListener,
}

impl Port {
    /// A free one.
    pub(crate) fn free() -> Self {
        let start = u16::try_from(std::process::id().wrapping_mul(37) % u32::from(COUNT)).unwrap();
        (0..COUNT)
            .map(|step| FIRST + (start + step) % COUNT)
            .find_map(Self::claim)
            .expect("no free port")
    }

    fn claim(number: u16) -> Option<Self> {
        let name = format!("headrest-test-port-{number}");
        let address = SocketAddr::from_abstract_name(name).ok()?;
        let claim = UnixListener::bind_addr(&address).ok()?;
        TcpListener::bind(("127.0.0.1", number)).ok()?;
        Some(Self { number, _claim: claim })
    }
}
