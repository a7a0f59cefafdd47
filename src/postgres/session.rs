//! The settings of the sessions that Headrest, pgBackRest and short-lived programs have in PostgreSQL.
//!
//! Somebody may have set anything as a default of the cluster, of a database or of a role, and much of
//! it breaks what these sessions do: a hot standby refuses serializable transactions, a time-out of a
//! second ends a backup. What is set when a session starts counts more than all of that (PostgreSQL
//! manual, 20.1.3 "Parameter Interaction via SQL").
//!
//! Pure. Only settings that the server's version has may be named: it refuses the session else.

/// What every role may set, with the first major version that has it.
const FOR_EVERYBODY: [(u16, &str, &str); 20] = [
    (0, "default_transaction_isolation", "read committed"),
    (0, "default_transaction_read_only", "off"),
    (0, "default_transaction_deferrable", "off"),
    (0, "statement_timeout", "0"),
    (0, "lock_timeout", "0"),
    (0, "idle_in_transaction_session_timeout", "0"),
    (14, "idle_session_timeout", "0"),
    (17, "transaction_timeout", "0"),
    (0, "search_path", "pg_catalog"),
    (0, "row_security", "on"),
    (0, "role", "none"),
    (0, "DateStyle", "ISO"),
    (0, "IntervalStyle", "postgres"),
    (0, "TimeZone", "UTC"),
    (0, "extra_float_digits", "1"),
    (0, "bytea_output", "hex"),
    (0, "standard_conforming_strings", "on"),
    (0, "local_preload_libraries", ""),
    // A synchronous standby that is away must not hold anything up.
    (0, "synchronous_commit", "local"),
    (0, "client_min_messages", "warning"),
];

/// What only a superuser may set.
const FOR_SUPERUSERS: [(u16, &str, &str); 3] = [
    (0, "session_preload_libraries", ""),
    // Messages are read.
    (0, "lc_messages", "C"),
    // A trigger of a login may do anything, and refuse it.
    (17, "event_triggers", "off"),
];

/// Options of a session for a server of this major version, as the start of a connection and
/// `PGOPTIONS` take them. Without a version only what every version has is set.
pub fn options(major: Option<u16>, superuser: bool) -> String {
    let major = major.unwrap_or(0);
    let more = if superuser { FOR_SUPERUSERS.as_slice() } else { &[] };
    let known = FOR_EVERYBODY.iter().chain(more).filter(|(since, ..)| *since <= major);
    let options = known.map(|(_, name, value)| format!("-c {name}={}", value.replace(' ', "\\ ")));
    options.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_told_only_what_it_has() {
        let cases = [
            (None, false, [false, false, false, false]),
            (Some(13), true, [false, false, false, true]),
            (Some(15), true, [true, false, false, true]),
            (Some(18), true, [true, true, true, true]),
            (Some(18), false, [true, true, false, false]),
        ];
        let names =
            ["idle_session_timeout", "transaction_timeout", "event_triggers", "lc_messages"];
        for (major, superuser, expect) in cases {
            let options = options(major, superuser);
            assert_eq!(names.map(|name| options.contains(name)), expect, "{options}");
            assert!(options.contains("-c default_transaction_isolation=read\\ committed "));
        }
    }
}
