//! Where notifications do not go.

use crate::receiver::{Answer, Receiver};
use crate::rig::{Rig, target};

/// Tries one target, and answers the error.
async fn error_of(url: &str, more: &str) -> Option<String> {
    let rig = Rig::new(&target("ops", "webhook", url, more)).await;
    rig.notifier.test("ops", "t").await.unwrap().error
}

#[tokio::test]
async fn a_redirect_is_a_failure_and_leads_nowhere() {
    let elsewhere = Receiver::good().await;
    let receiver = Receiver::start(Answer::Redirect(elsewhere.url("/stolen"))).await;
    let rig = Rig::new(&target("ops", "webhook", &receiver.url("/"), "secret = \"s\"")).await;
    let attempt = rig.notifier.test("ops", "t").await.unwrap();
    assert_eq!((attempt.delivered, attempt.status), (false, Some(302)));
    let error = attempt.error.unwrap();
    assert!(error.contains("redirects are not followed"), "{error}");
    assert_eq!((receiver.requests().len(), elsewhere.requests().len()), (1, 0));
}

#[tokio::test]
async fn link_local_addresses_are_never_connected_to() {
    let urls = [
        "http://169.254.169.254/latest/meta-data/",
        "http://[::ffff:169.254.169.254]/",
        "http://2852039166/",
        "http://0xa9.0xfe.0xa9.0xfe/",
        "http://0251.0376.0251.0376/",
        "http://[fe80::1]/",
        "http://[fd00:ec2::254]/",
        "http://0.0.0.0/",
    ];
    for url in urls {
        for more in ["", "allow_private = true"] {
            let error = error_of(url, more).await.unwrap();
            assert!(error.contains("never used"), "{url}: {error}");
        }
    }
}

#[tokio::test]
async fn private_addresses_need_to_be_meant() {
    let receiver = Receiver::good().await;
    let port = receiver.address.port();
    let urls = [
        format!("http://127.0.0.1:{port}/"),
        format!("http://localhost:{port}/"),
        format!("http://2130706433:{port}/"),
        format!("http://[::ffff:127.0.0.1]:{port}/"),
    ];
    for url in &urls {
        let error = error_of(url, "allow_private = false").await.unwrap();
        assert!(error.contains("private address"), "{url}: {error}");
    }
    assert_eq!(receiver.requests().len(), 0);
    for (index, url) in urls.iter().enumerate() {
        assert_eq!(error_of(url, "").await, None, "{url}");
        assert_eq!(receiver.requests().len(), index + 1);
    }
}

#[tokio::test]
async fn tls_is_asked_for_where_the_url_says_so() {
    let receiver = Receiver::good().await;
    let url = receiver.url("/s3cret").replace("http:", "https:");
    let error = error_of(&url, "").await.unwrap();
    assert!(!error.contains("s3cret"), "{error}");
    assert_eq!(receiver.requests().len(), 0, "nothing in the clear");
}

#[tokio::test]
async fn a_name_that_does_not_exist_is_a_failure_like_others() {
    let error = error_of("http://no-such-host.invalid/s3cret", "").await.unwrap();
    assert!(error.contains("no-such-host.invalid") && !error.contains("s3cret"), "{error}");
}
