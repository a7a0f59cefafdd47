//! Which addresses a notification may go to. Asked for the address that is connected to, after
//! every resolution, so that a name cannot lead elsewhere later.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::net::lookup_host;

/// Where clouds answer questions about the machine and its credentials, outside of the link-local
/// ranges: Azure, Alibaba, Oracle; AWS over IPv6.
const METADATA_V4: [Ipv4Addr; 3] = [
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(192, 0, 0, 192),
];
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// An address that a notification must not go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Forbidden {
    /// For any target.
    #[error("{0} is link-local, a cloud's metadata service or no host's address: never used")]
    Always(IpAddr),
    /// For a target without `allow_private`.
    #[error("{0} is a private address: allow_private = true allows it")]
    Private(IpAddr),
}

/// Why a name leads nowhere.
#[derive(Debug, thiserror::Error)]
enum NoAddress {
    #[error("{host} leads to addresses that are not allowed: {forbidden}")]
    Forbidden { host: String, forbidden: Forbidden },
    #[error("{0} has no address")]
    None(String),
    #[error("cannot resolve {host}")]
    Unresolved { host: String, source: std::io::Error },
}

/// Says whether an address may be connected to.
pub(super) fn check(address: IpAddr, allow_private: bool) -> Result<(), Forbidden> {
    let real = embedded(address);
    let (never, private) = match real {
        IpAddr::V4(v4) => (is_never_v4(v4), is_private_v4(v4)),
        IpAddr::V6(v6) => (is_never_v6(v6), is_private_v6(v6)),
    };
    if never {
        Err(Forbidden::Always(address))
    } else if private && !allow_private {
        Err(Forbidden::Private(address))
    } else {
        Ok(())
    }
}

/// The IPv4 address that an IPv6 address stands for: mapped, compatible, NAT64, 6to4.
fn embedded(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let words = v6.segments();
    let v4 = |high: u16, low: u16| {
        IpAddr::V4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
    };
    let [.., high, low] = words;
    match words {
        [0, 0, 0, 0, 0, 0xffff, ..]
        | [0, 0, 0, 0, 0xffff, 0, ..]
        | [0x64, 0xff9b, 0, 0, 0, 0, ..]
        | [0x64, 0xff9b, 1, ..] => v4(high, low),
        // Not :: and ::1.
        [0, 0, 0, 0, 0, 0, 1..=u16::MAX, _] => v4(high, low),
        [0x2002, high, low, ..] => v4(high, low),
        _ => address,
    }
}

fn is_never_v4(v4: Ipv4Addr) -> bool {
    v4.is_link_local()
        || v4.is_broadcast()
        || v4.is_multicast()
        // 0.0.0.0 is this machine to connect(2).
        || v4.octets()[0] == 0
        || METADATA_V4.contains(&v4)
}

fn is_private_v4(v4: Ipv4Addr) -> bool {
    let [a, b, c, _] = v4.octets();
    v4.is_loopback()
        || v4.is_private()
        // Carrier-grade NAT, benchmarking, protocol assignments, reserved.
        || (a == 100 && (64..128).contains(&b))
        || (a == 198 && (18..20).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || a >= 240
}

fn is_never_v6(v6: Ipv6Addr) -> bool {
    v6.is_unicast_link_local() || v6.is_multicast() || v6.is_unspecified() || v6 == METADATA_V6
}

fn is_private_v6(v6: Ipv6Addr) -> bool {
    // fec0::/10 was site-local once.
    v6.is_loopback() || v6.is_unique_local() || (v6.segments()[0] & 0xffc0) == 0xfec0
}

/// Resolves names to addresses that are allowed.
#[derive(Debug, Clone, Copy)]
pub(super) struct GuardedResolver {
    pub(super) allow_private: bool,
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let allow_private = self.allow_private;
        Box::pin(async move {
            let host = name.as_str().to_owned();
            let found = lookup_host((name.as_str(), 0)).await.map(Iterator::collect::<Vec<_>>);
            let found = match found {
                Ok(found) => found,
                Err(source) => return Err(NoAddress::Unresolved { host, source }.into()),
            };
            let addresses = allowed(host, found, allow_private)?;
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

/// Of the addresses that a name has, those that may be connected to; a reason when there are none.
fn allowed(
    host: String,
    found: Vec<SocketAddr>,
    allow_private: bool,
) -> Result<Vec<SocketAddr>, NoAddress> {
    let mut addresses = Vec::new();
    let mut first = None;
    for address in found {
        match check(address.ip(), allow_private) {
            Ok(()) => addresses.push(address),
            Err(forbidden) => first = first.or(Some(forbidden)),
        }
    }
    match (addresses.is_empty(), first) {
        (false, _) => Ok(addresses),
        (true, Some(forbidden)) => Err(NoAddress::Forbidden { host, forbidden }),
        (true, None) => Err(NoAddress::None(host)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, PartialEq)]
    enum Kind {
        Public,
        Private,
        Never,
    }

    fn kind(address: IpAddr) -> Kind {
        match (check(address, true), check(address, false)) {
            (Ok(()), Ok(())) => Kind::Public,
            (Ok(()), Err(Forbidden::Private(_))) => Kind::Private,
            (Err(Forbidden::Always(_)), Err(Forbidden::Always(_))) => Kind::Never,
            other => panic!("{address}: {other:?}"),
        }
    }

    #[test]
    fn addresses_are_what_they_are_in_every_notation() {
        let cases = [
            ("93.184.216.34", Kind::Public),
            ("2606:2800:220:1::1", Kind::Public),
            ("172.15.0.1", Kind::Public),
            ("172.32.0.1", Kind::Public),
            ("100.63.0.1", Kind::Public),
            ("100.128.0.1", Kind::Public),
            ("127.0.0.1", Kind::Private),
            ("127.8.8.8", Kind::Private),
            ("10.0.0.1", Kind::Private),
            ("172.16.0.1", Kind::Private),
            ("172.31.255.255", Kind::Private),
            ("192.168.1.1", Kind::Private),
            ("100.64.0.1", Kind::Private),
            ("198.18.0.1", Kind::Private),
            ("::1", Kind::Private),
            ("fd12::1", Kind::Private),
            ("fec0::1", Kind::Private),
            ("::ffff:127.0.0.1", Kind::Private),
            ("::ffff:10.0.0.1", Kind::Private),
            ("::127.0.0.1", Kind::Private),
            ("64:ff9b::a00:1", Kind::Private),
            ("2002:c0a8:101::1", Kind::Private),
            ("::ffff:8.8.8.8", Kind::Public),
            ("169.254.169.254", Kind::Never),
            ("169.254.0.1", Kind::Never),
            ("::ffff:169.254.169.254", Kind::Never),
            ("64:ff9b::a9fe:a9fe", Kind::Never),
            ("2002:a9fe:a9fe::1", Kind::Never),
            ("fe80::1", Kind::Never),
            ("febf::1", Kind::Never),
            ("fd00:ec2::254", Kind::Never),
            ("100.100.100.200", Kind::Never),
            ("168.63.129.16", Kind::Never),
            ("0.0.0.0", Kind::Never),
            ("0.1.2.3", Kind::Never),
            ("::", Kind::Never),
            ("255.255.255.255", Kind::Never),
            ("224.0.0.1", Kind::Never),
            ("ff02::1", Kind::Never),
        ];
        for (text, expect) in cases {
            assert_eq!(kind(text.parse().unwrap()), expect, "{text}");
        }
    }

    #[test]
    fn of_a_name_only_allowed_addresses_are_left() {
        let both: Vec<SocketAddr> =
            ["10.0.0.1:0", "8.8.8.8:0"].map(|text| text.parse().unwrap()).to_vec();
        assert_eq!(allowed("h".into(), both.clone(), false).unwrap(), both[1..]);
        assert_eq!(allowed("h".into(), both.clone(), true).unwrap(), both);
        let refused = allowed("h".into(), both[..1].to_vec(), false).unwrap_err().to_string();
        assert!(refused.contains("allow_private"), "{refused}");
        assert!(allowed("h".into(), Vec::new(), true).is_err());
    }

    proptest! {
        #[test]
        fn writing_an_address_as_ipv6_changes_nothing(bits in any::<u32>()) {
            let v4 = Ipv4Addr::from_bits(bits);
            prop_assert_eq!(kind(IpAddr::V4(v4)), kind(IpAddr::V6(v4.to_ipv6_mapped())));
        }
    }
}
