//! What a first start writes into the new cluster's configuration: where it listens, who may connect.

use std::fs;
use std::path::Path;

use super::{BootstrapError, FirstStart, file, quoted};
use crate::postgres::durable::write_durably;

/// A container is reached through its network, so the server listens there.
pub(super) fn listen_everywhere(data_dir: &Path) -> Result<(), BootstrapError> {
    let path = data_dir.join("postgresql.conf");
    let text = fs::read_to_string(&path).map_err(file("read", &path))?;
    let text: Vec<String> = text
        .lines()
        .map(|line| {
            // Only the default that initdb writes: not what somebody set with `--set`.
            let (setting, comment) = line.split_once('\t').unwrap_or((line, ""));
            if setting == "#listen_addresses = 'localhost'" {
                format!("listen_addresses = '*'\t{comment}")
            } else {
                line.to_owned()
            }
        })
        .collect();
    write_durably(&path, &(text.join("\n") + "\n")).map_err(file("write", &path))
}

/// The rule for everybody who connects over TCP from outside.
pub(super) fn allow_hosts(data_dir: &Path, method: &str) -> Result<(), BootstrapError> {
    let hba = data_dir.join("pg_hba.conf");
    let mut text = fs::read_to_string(&hba).map_err(file("read", &hba))?;
    text.push('\n');
    if method == "trust" {
        text.push_str("# POSTGRES_HOST_AUTH_METHOD=trust: everybody may connect as everybody,\n");
        text.push_str("# without a password.\n");
    }
    text.push_str(&format!("host all all all {method}\n"));
    write_durably(&hba, &text).map_err(file("write", &hba))
}

/// Lets the operating-system user that runs the server, and root, be the superuser over the local
/// socket; everybody else is who they are.
pub(super) fn allow_identities(first: &FirstStart) -> Result<(), BootstrapError> {
    let ident = first.data_dir.join("pg_ident.conf");
    let superuser = quoted(&first.superuser);
    let mut text = fs::read_to_string(&ident).map_err(file("read", &ident))?;
    text.push_str("\n# Written by Headrest at the first start.\n");
    for user in [first.os_user.as_str(), "root"] {
        text.push_str(&format!("headrest {} {superuser}\n", quoted(user)));
    }
    text.push_str("headrest /^(.*)$ \\1\n");
    write_durably(&ident, &text).map_err(file("write", &ident))?;

    let hba = first.data_dir.join("pg_hba.conf");
    let text = fs::read_to_string(&hba).map_err(file("read", &hba))?;
    let text: Vec<String> = text
        .lines()
        .map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if fields.first() == Some(&"local") && fields.last() == Some(&"peer") {
                format!("{line} map=headrest")
            } else {
                line.to_owned()
            }
        })
        .collect();
    write_durably(&hba, &(text.join("\n") + "\n")).map_err(file("write", &hba))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_default_of_listen_addresses_is_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("postgresql.conf");
        let comment = "\t\t# what IP address(es) to listen on;\n";
        for (before, after) in [
            ("#listen_addresses = 'localhost'", "listen_addresses = '*'"),
            ("listen_addresses = 'localhost'", "listen_addresses = 'localhost'"),
            ("listen_addresses = '*'", "listen_addresses = '*'"),
        ] {
            fs::write(&path, format!("a = 1\n{before}{comment}#port = 5432\n")).unwrap();
            listen_everywhere(dir.path()).unwrap();
            let text = fs::read_to_string(&path).unwrap();
            assert_eq!(text, format!("a = 1\n{after}{comment}#port = 5432\n"));
        }
    }
}
