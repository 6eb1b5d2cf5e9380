//! How a connection to a node is opened, and when it is not.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use dormouse::source::dcp::{Cluster, CollectionId, DcpConfig, Feature, NAME_BYTES_MAX, OpenCause, Status};
use dormouse::thread::{Failure, Stopped, Until, spawn};
use slog::{Discard, Logger, o};

use crate::support::followed::{open, try_open};
use crate::support::producer::{Certificate, Producer};
use crate::support::{cancelled, watchdog};

fn refusal(config: &DcpConfig) -> OpenCause {
    match try_open(config, 90, &watchdog()) {
        Err(error) => error.cause,
        Ok(_) => panic!("it was opened"),
    }
}

#[test]
fn every_way_to_log_in_without_tls_proves_the_password_and_does_not_send_it() {
    let producer = Producer::start(1);
    for mechanism in ["SCRAM-SHA512", "SCRAM-SHA256", "SCRAM-SHA1", "SCRAM-SHA1 PLAIN"] {
        producer.behave(|behaviour| behaviour.mechanisms = mechanism);
        open(&producer.config(), 10).close();
        let mut wrong = producer.config();
        wrong.login.password = "pen".to_owned();
        let cause = refusal(&wrong);
        assert!(matches!(cause, OpenCause::Refused { status: Status::AUTH_ERROR, .. }), "{cause:?}");
    }
    producer.check();
}

#[test]
fn a_password_is_sent_as_it_is_over_tls_or_where_that_is_allowed() {
    let producer = Producer::start(1);
    producer.behave(|behaviour| behaviour.mechanisms = "PLAIN");
    assert!(matches!(refusal(&producer.config()), OpenCause::NoMechanism(_)));
    let mut allowed = producer.config();
    allowed.login.plain_without_tls = true;
    open(&allowed, 11).close();
    producer.check();
    let certificate = Certificate::new("localhost");
    let producer = Producer::start_with(1, Some(&certificate));
    producer.behave(|behaviour| behaviour.mechanisms = "PLAIN");
    open(&producer.config_with(&certificate), 11).close();
    producer.check();
}

#[test]
fn a_server_that_does_not_prove_itself_is_refused() {
    let producer = Producer::start(1);
    producer.answer(0x22, 0, b"v=AAAA");
    assert!(matches!(refusal(&producer.config()), OpenCause::Login(_)));
    producer.answer(0x21, 0x21, b"r=x,s=AAAA,i=4000000000");
    let cause = refusal(&producer.config());
    assert!(cause.to_string().contains("4000000000 rounds"), "{cause}");
}

#[test]
fn what_is_no_message_of_scram_is_refused_whatever_it_is() {
    let producer = Producer::start(1);
    for said in
        ["", "r", "r=", "r=x", "r=x,", "r=x,,", "r=x,s", "r=x,s=AAAA,i", "r=x,s=AAAA,1=1", ",r=x,s=AAAA,i=1"]
    {
        producer.answer(0x21, 0x21, said.as_bytes());
        let cause = refusal(&producer.config());
        assert!(matches!(cause, OpenCause::Login(_)), "{said}: {cause}");
    }
    let producer = Producer::start(1);
    for said in ["", "v", "e", ",", "v=", "v=,", "e=other-error", "x=y"] {
        producer.answer(0x22, 0, said.as_bytes());
        let cause = refusal(&producer.config());
        assert!(matches!(cause, OpenCause::Login(_)), "{said}: {cause}");
    }
}

#[test]
fn a_stream_comes_over_tls_and_a_certificate_of_nobody_known_is_refused() {
    let (certificate, other) = (Certificate::new("localhost"), Certificate::new("localhost"));
    let producer = Producer::start_with(1, Some(&certificate));
    let value = format!("\"{}\"", "x".repeat(100_000));
    producer.fill(40, &value);
    let followed = open(&producer.config_with(&certificate), 12);
    followed.follow_to(0, 40);
    let events = followed.until_ends(1);
    assert_eq!(events.len(), 43);
    assert!(events[2..42].iter().all(|(_, _, what)| what.len() > 100_000));
    followed.close();
    let refused = refusal(&producer.config_with(&other));
    assert!(matches!(refused, OpenCause::Io(_)) && !refused.is_temporary(), "{refused:?}");
}

#[test]
fn features_that_were_not_asked_for_or_are_missing_are_refused() {
    let producer = Producer::start(1);
    let hello = |features: &[u16]| -> Vec<u8> { features.iter().flat_map(|f| f.to_be_bytes()).collect() };
    producer.answer(0x1f, 0, &hello(&[6, 7, 8, 10, 11]));
    assert!(matches!(refusal(&producer.config()), OpenCause::MissingFeature(Feature::COLLECTIONS)));
    producer.answer(0x1f, 0, &hello(&[6, 7, 8, 10, 11, 0x12, 0x15]));
    assert!(matches!(refusal(&producer.config()), OpenCause::UnaskedFeature(Feature(0x15))));
    producer.answer(0x1f, 0, &[0, 6, 0]);
    assert!(matches!(refusal(&producer.config()), OpenCause::Answer(_)));
}

#[test]
fn a_refused_step_of_the_handshake_is_named_with_what_the_server_said() {
    for (opcode, step) in [(0x89, "bucket"), (0x50, "DCP"), (0x5e, "connection_buffer_size")] {
        let producer = Producer::start(1);
        producer.answer(opcode, 0x24, b"no rights");
        let Err(error) = try_open(&producer.config(), 13, &watchdog()) else { panic!("it was opened") };
        let text = error.to_string();
        assert!(text.contains(step) && text.contains("no rights") && text.contains("0x24"), "{text}");
    }
}

#[test]
fn a_node_that_does_not_tell_the_map_is_named_with_what_it_said() {
    let producer = Producer::start(1);
    let mut cluster = producer.cluster();
    let ask =
        |cluster: &Cluster| cluster.fetch_map(&cluster.seeds, &Logger::root(Discard, o!()), &watchdog());
    assert_eq!(ask(&cluster).unwrap().vbuckets(), 1);
    producer.answer(0xb5, 0x24, b"no rights");
    let text = ask(&cluster).err().unwrap().to_string();
    assert!(text.contains("configuration") && text.contains("no rights") && text.contains("0x24"), "{text}");
    producer.behave(|behaviour| drop(behaviour.answers.insert(0xb5, None)));
    cluster.connection.step_timeout = Duration::from_millis(300);
    let text = ask(&cluster).err().unwrap().to_string();
    assert!(text.contains("configuration"), "{text}");
}

#[test]
fn each_step_of_the_handshake_has_a_deadline() {
    for opcode in [0x1f, 0x20, 0x21, 0x22, 0x89, 0xba, 0x50, 0x5e, 0x91] {
        let producer = Producer::start(1);
        producer.behave(|behaviour| drop(behaviour.answers.insert(opcode, None)));
        let mut config = producer.config();
        config.step_timeout = Duration::from_millis(300);
        (config.collection, config.persisted_only) = (CollectionId(8), true);
        assert!(matches!(refusal(&config), OpenCause::Silent), "{opcode:#x}");
    }
}

#[test]
fn an_opening_ends_when_it_is_cancelled() {
    // It accepts connections and says nothing.
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let producer = Producer::start(1);
    let config = DcpConfig { address: listener.local_addr().unwrap(), ..producer.config() };
    let Err(error) = try_open(&config, 14, &cancelled()) else { panic!("it was opened") };
    assert!(matches!(error.cause, OpenCause::Stopped(Stopped::Cancelled)), "{error}");
    let soon = Until::within(Duration::from_millis(100));
    let Err(error) = try_open(&config, 14, &soon) else { panic!("it was opened") };
    assert!(matches!(error.cause, OpenCause::Stopped(Stopped::DeadlinePassed)), "{error}");
}

#[test]
fn names_of_connections_are_short_and_unique() {
    let producer = Producer::start(1);
    let mut config = producer.config();
    config.label = "ü".repeat(500);
    let (a, b) = (config.connection_name().unwrap(), config.connection_name().unwrap());
    assert!(a.len() <= NAME_BYTES_MAX && a != b && a.starts_with("dormouse:üü"), "{a}");
    let (one, two) = (open(&config, 15), open(&config, 16));
    assert_ne!(one.connection.name(), two.connection.name());
    one.close();
    two.close();
    producer.check();
}

#[test]
fn a_step_may_be_given_all_the_time_that_there_is() {
    let producer = Producer::start(1);
    let config = DcpConfig { step_timeout: Duration::MAX, ..producer.config() };
    open(&config, 14).close();
    producer.check();
}

#[test]
fn a_node_that_says_something_else_without_end_is_given_up_when_the_step_is_over() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = spawn("t-chatter", move || {
        let (mut tcp, _) = listener.accept().unwrap();
        let mut noop = [0; 24];
        (noop[0], noop[1]) = (0x80, 0x5c);
        let mut read = [0; 4096];
        while tcp.write_all(&noop).is_ok() && matches!(tcp.read(&mut read), Ok(1..)) {}
    })
    .unwrap();
    let producer = Producer::start(1);
    let config = DcpConfig { address, step_timeout: Duration::from_millis(200), ..producer.config() };
    let asked = spawn("t-open", move || refusal(&config)).unwrap();
    let cause = asked.join(&watchdog()).unwrap();
    assert!(matches!(cause, OpenCause::Silent), "{cause:?}");
    server.join(&watchdog()).unwrap();
    producer.check();
}
