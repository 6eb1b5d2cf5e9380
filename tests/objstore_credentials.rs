//! Where credentials come from: each place as a small server, or a file, that insists on its protocol.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use dormouse::objstore::{
    CredentialSource, Credentials, Layer, ObjectStore, Retry, RetryConfig, S3Config, S3Store, Secret,
    StoreCause, StoreError,
};
use dormouse::thread::{Failure, Stopped, Until, fin, spawn};
use parking_lot::Mutex;
use tempfile::TempDir;

use crate::support::stores::http::{Request, Server, answer, error_document};
use crate::support::{eventually, forever, key, watchdog};

/// An S3 server that only notes who asks.
struct Bank {
    server: Server,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Bank {
    fn open() -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&seen);
        let server = Server::start(move |request| {
            let who = request.header("authorization").split(['=', '/']).nth(1).unwrap_or("nobody");
            noted.lock().push(format!("{who} {}", request.header("x-amz-security-token")));
            answer(404, "", b"")
        });
        Self { server, seen }
    }

    fn store(&self, credentials: Vec<CredentialSource>) -> S3Store {
        let config = S3Config {
            endpoint: Some(self.server.url()),
            path_style: true,
            credentials,
            ..S3Config::new("bucket", "us-east-1")
        };
        S3Store::open(config).unwrap()
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().clone()
    }
}

/// Asks the bank with credentials from `source` alone.
fn ask(source: CredentialSource) -> Result<String, StoreError> {
    let bank = Bank::open();
    bank.store(vec![source]).head(&key("x"), &forever())?;
    Ok(bank.seen().remove(0))
}

/// A service, and the requests it has had.
fn service(
    serve: impl Fn(&Request) -> Vec<u8> + Send + Sync + 'static,
) -> (Server, Arc<Mutex<Vec<Request>>>) {
    let requests = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&requests);
    let server = Server::start(move |request| {
        noted.lock().push(request.clone());
        serve(request)
    });
    (server, requests)
}

fn document(id: &str, expires: SystemTime) -> String {
    let expires = humantime::format_rfc3339_seconds(expires);
    format!(
        r#"{{"Code":"Success","AccessKeyId":"{id}","SecretAccessKey":"s","Token":"t=/+==","Expiration":"{expires}"}}"#
    )
}

fn in_an_hour() -> SystemTime {
    SystemTime::now() + Duration::from_secs(3600)
}

#[test]
fn credentials_may_be_given() {
    let given = |session_token: Option<&str>| {
        CredentialSource::Given(Credentials {
            access_key_id: "GIVEN".to_owned(),
            secret_access_key: "secret".to_owned(),
            session_token: session_token.map(str::to_owned),
            expires: None,
        })
    };
    assert_eq!(ask(given(None)).unwrap(), "GIVEN ");
    assert_eq!(ask(given(Some("a=b"))).unwrap(), "GIVEN a=b");
    assert!(!format!("{:?}", given(Some("a=b"))).contains("secret"));
}

#[test]
fn without_any_place_requests_are_not_signed() {
    let bank = Bank::open();
    bank.store(Vec::new()).head(&key("x"), &forever()).unwrap();
    assert_eq!(bank.seen(), ["nobody "]);
}

/// The two files of profiles.
struct Files(TempDir);

impl Files {
    fn new(credentials: &str, config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("credentials"), credentials).unwrap();
        fs::write(folder.path().join("config"), config).unwrap();
        Self(folder)
    }

    fn profile(&self, name: &str) -> CredentialSource {
        self.profile_with_sts(name, "http://127.0.0.1:1")
    }

    fn profile_with_sts(&self, name: &str, sts_endpoint: &str) -> CredentialSource {
        CredentialSource::Profile {
            name: name.to_owned(),
            credentials_file: self.0.path().join("credentials"),
            config_file: self.0.path().join("config"),
            sts_endpoint: sts_endpoint.to_owned(),
        }
    }
}

#[test]
fn a_profile_is_read_from_either_file_and_a_token_is_not_cut() {
    let files = Files::new(
        "# a comment\n[default]\naws_access_key_id = DEFAULT\naws_secret_access_key = s\n\n\
         [other]\naws_access_key_id=OTHER\naws_secret_access_key=\"s\\n\naws_session_token=a=b/+c==\n",
        "[default]\nregion = eu-west-1\ns3 =\n  max_concurrent_requests = 20\n  addressing_style = path\n\
         [profile third]\naws_access_key_id = THIRD\naws_secret_access_key = s\n",
    );
    assert_eq!(ask(files.profile("default")).unwrap(), "DEFAULT ");
    assert_eq!(ask(files.profile("other")).unwrap(), "OTHER a=b/+c==");
    assert_eq!(ask(files.profile("third")).unwrap(), "THIRD ");
}

/// What the AWS tools read, and readers of other files like these do not.
#[test]
fn a_profile_is_read_as_the_aws_tools_read_it() {
    let keys = "aws_access_key_id = KEY\naws_secret_access_key = s";
    let spaced = "aws_access_key_id = KEY\n  # a comment between the two\n\naws_secret_access_key = s";
    let shouted = "AWS_ACCESS_KEY_ID = KEY\nAws_Secret_Access_Key = s";
    for (name, credentials, config) in [
        ("default", format!("[default] # main account\n{keys}\n"), String::new()),
        ("default", format!("\u{feff}[default]\r\n{}\r\n", keys.replace('\n', "\r\n")), String::new()),
        ("default", format!("[default]\n{spaced}\n"), String::new()),
        ("default", format!("[default]\n{shouted}\n"), String::new()),
        ("default", format!("[default]\n  {}\n", keys.replace('\n', "\n  ")), String::new()),
        ("x", format!("  [a]\n  k = v\n  [x]\n  {}\n", keys.replace('\n', "\n  ")), String::new()),
        ("x", format!("[x]\n{}\n", keys.replace(" = ", ": ")), String::new()),
        ("default", String::new(), format!("[profile default]\n{keys}\n")),
        ("default", String::new(), format!("[default]\nregion = x\n[profile default]\n{keys}\n")),
        ("x", String::new(), format!("[sso-session x]\nregion = y\n[profile   x]\n{keys}\n")),
        ("my x", String::new(), format!("[profile \"my x\"] ; quoted\n{keys}\n")),
        ("x", format!("[x]\ns3 =\n  aws_access_key_id = NESTED\n{keys}\n"), "[profile x]\n".to_owned()),
    ] {
        let files = Files::new(&credentials, &config);
        assert_eq!(ask(files.profile(name)).unwrap(), "KEY ", "{credentials}{config}");
    }
    // A role that is assumed with the keys beside it is another one than they are.
    let files = Files::new(&format!("[x]\n{keys}\n"), "[profile x]\nrole_arn = r\nsource_profile = x\n");
    let error = ask(files.profile("x")).unwrap_err();
    assert!(error.to_string().contains("is a role, which is not assumed here; name a process"), "{error}");
    for off in ["[x\n", "keys = none\n", "[x]\nnothing\n", "[\"x]\nk = v\n"] {
        let error = ask(Files::new(off, "").profile("x")).unwrap_err();
        assert!(error.to_string().contains("is no file of profiles: line "), "{error}");
    }
}

#[test]
fn a_profile_that_is_not_there_or_holds_nothing_is_named() {
    let files = Files::new("[empty]\n", "[profile sso]\nsso_start_url = https://x\n");
    for name in ["missing", "empty", "sso"] {
        let error = ask(files.profile(name)).unwrap_err();
        assert!(matches!(error.cause, StoreCause::Credentials { is_temporary: false, .. }), "{error}");
        assert!(error.to_string().contains(&format!("profile {name} ")), "{error}");
    }
    let error = ask(files.profile("default")).unwrap_err();
    assert!(error.to_string().contains("none of the usual places has any"), "{error}");
}

/// A script that prints `output` and notes each run.
fn script(folder: &Path, output: &str, more: &str) -> String {
    let path = folder.join("process");
    fs::write(folder.join("output"), output).unwrap();
    let text = format!("echo run \"$1\" >> '{0}/runs'\ncat '{0}/output'\n{more}\n", folder.display());
    fs::write(&path, text).unwrap();
    format!("sh '{}' \"two words\"", path.display())
}

/// A profile whose process prints `output`, in a folder where its runs are noted.
fn by_process(output: &str) -> (TempDir, Files) {
    let folder = tempfile::tempdir().unwrap();
    let line = script(folder.path(), output, "");
    let files = Files::new("", &format!("[profile p]\ncredential_process = {line}\n"));
    (folder, files)
}

#[test]
fn a_process_gives_credentials_once_for_many_calls() {
    let expires = humantime::format_rfc3339_seconds(in_an_hour()).to_string().replace('Z', "+00:00");
    let output = format!(
        r#"{{"Version":1,"AccessKeyId":"PROCESS","SecretAccessKey":"s","SessionToken":"t==","Expiration":"{expires}"}}"#
    );
    let (folder, files) = by_process(&output);
    let bank = Bank::open();
    let store = bank.store(vec![files.profile("p")]);
    for _ in 0..3 {
        store.head(&key("x"), &forever()).unwrap();
    }
    assert_eq!(bank.seen(), vec!["PROCESS t=="; 3]);
    assert_eq!(fs::read_to_string(folder.path().join("runs")).unwrap(), "run two words\n");
}

fn expiring(at: &str) -> String {
    format!(r#"{{"Version":1,"AccessKeyId":"P","SecretAccessKey":"s","Expiration":"{at}"}}"#)
}

#[test]
fn credentials_may_expire_by_the_clock_of_any_place() {
    for (offset, ahead_seconds) in [("+02:00", 7200), ("-05:30", -19800), ("+00:00", 0)] {
        let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let local = seconds(in_an_hour()).checked_add_signed(ahead_seconds).unwrap();
        let local = SystemTime::UNIX_EPOCH + Duration::from_secs(local);
        let expires = humantime::format_rfc3339_seconds(local).to_string().replace('Z', offset);
        let (folder, files) = by_process(&expiring(&expires));
        let bank = Bank::open();
        let store = bank.store(vec![files.profile("p")]);
        for _ in 0..3 {
            store.head(&key("x"), &forever()).unwrap();
        }
        assert_eq!(fs::read_to_string(folder.path().join("runs")).unwrap().lines().count(), 1, "{expires}");
    }
    for wrong in
        ["2099-01-01T00:00:00+0200", "2099-01-01T00:00:00*02:00", "2099-01-01T00:00:00+ü:00", "+02:00"]
    {
        let (_folder, files) = by_process(&expiring(wrong));
        let error = ask(files.profile("p")).unwrap_err();
        assert!(error.to_string().contains("gave an Expiration that is no time"), "{error}");
    }
}

#[test]
fn a_process_that_fails_or_says_nonsense_is_named_and_its_words_are_not_shown() {
    for (output, more, said) in [
        ("", "exit 3", "ended with exit status: 3"),
        ("secret nonsense", "", "gave no JSON of credentials"),
        (r#"{"Version":1,"AccessKeyId":"P"}"#, "", "gave no SecretAccessKey"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let line = script(folder.path(), output, more);
        let files = Files::new(&format!("[p]\ncredential_process={line}\n"), "");
        let text = ask(files.profile("p")).unwrap_err().to_string();
        assert!(text.contains("the credential_process of profile p ") && text.contains(said), "{text}");
        assert!(!text.contains("nonsense"), "{text}");
    }
}

#[test]
fn a_process_that_hangs_ends_with_the_callers_limit() {
    let folder = tempfile::tempdir().unwrap();
    let line = script(folder.path(), "", "exec sleep 60");
    let files = Files::new(&format!("[p]\ncredential_process={line}\n"), "");
    let bank = Bank::open();
    let store = bank.store(vec![files.profile("p")]);
    let began = Instant::now();
    let error = store.head(&key("x"), &Until::within(Duration::from_millis(200))).unwrap_err();
    assert!(matches!(error.cause, StoreCause::Stopped(Stopped::DeadlinePassed)), "{error}");
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_web_identity_is_taken_to_sts_with_its_token() {
    let folder = tempfile::tempdir().unwrap();
    let token_file = folder.path().join("token");
    fs::write(&token_file, "to/ken+=\n").unwrap();
    let (sts, requests) = service(|request| {
        let body = String::from_utf8_lossy(&request.body);
        let wanted = [
            "Action=AssumeRoleWithWebIdentity",
            "Version=2011-06-15",
            "RoleArn=arn%3Aaws%3Aiam%3A%3A1%3Arole%2Fr",
            "RoleSessionName=me",
            "WebIdentityToken=to%2Fken%2B%3D",
        ];
        if request.method != "POST" || wanted.iter().any(|word| !body.contains(word)) {
            let body = b"<ErrorResponse><Error><Type>Sender</Type><Code>InvalidIdentityToken</Code>\
                         <Message>No.</Message></Error></ErrorResponse>";
            return answer(400, "", body);
        }
        let body = b"<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
            <AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>WEB</AccessKeyId>\
            <SecretAccessKey>s</SecretAccessKey><SessionToken>t==</SessionToken>\
            <Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleWithWebIdentityResult>\
            </AssumeRoleWithWebIdentityResponse>";
        answer(200, "", body)
    });
    let source = |token_file: &Path| CredentialSource::WebIdentity {
        token_file: token_file.to_owned(),
        role_arn: "arn:aws:iam::1:role/r".to_owned(),
        session_name: "me".to_owned(),
        endpoint: sts.url(),
    };
    assert_eq!(ask(source(&token_file)).unwrap(), "WEB t==");
    assert_eq!(requests.lock().len(), 1);
    let config = format!(
        "[profile w]\nrole_arn = arn:aws:iam::1:role/r\nrole_session_name = me\nweb_identity_token_file = {}\n",
        token_file.display()
    );
    assert_eq!(ask(Files::new("", &config).profile_with_sts("w", &sts.url())).unwrap(), "WEB t==");
    fs::write(&token_file, "wrong").unwrap();
    let error = ask(source(&token_file)).unwrap_err();
    assert!(error.to_string().contains("STS answers with status 400: InvalidIdentityToken: No."), "{error}");
    assert!(!error.is_temporary());
    let error = ask(source(&folder.path().join("none"))).unwrap_err();
    assert!(error.to_string().contains("none cannot be read"), "{error}");
}

#[test]
fn a_token_service_that_is_busy_is_asked_again() {
    let token = tempfile::NamedTempFile::new().unwrap();
    fs::write(token.path(), "token").unwrap();
    let (sts, _) = service(|_| {
        let body = b"<ErrorResponse><Error><Type>Sender</Type><Code>Throttling</Code>\
                     <Message>Rate exceeded</Message></Error></ErrorResponse>";
        answer(400, "", body)
    });
    let error = ask(CredentialSource::WebIdentity {
        token_file: token.path().to_owned(),
        role_arn: "arn:aws:iam::1:role/r".to_owned(),
        session_name: "me".to_owned(),
        endpoint: sts.url(),
    })
    .unwrap_err();
    assert!(error.is_temporary(), "{error}");
    assert!(error.to_string().contains("STS answers with status 400: Throttling: Rate exceeded"), "{error}");
}

fn container(url: String, authorization: Option<Secret>) -> CredentialSource {
    CredentialSource::Container { url, authorization }
}

#[test]
fn a_containers_endpoint_is_asked_with_its_token() {
    let (endpoint, _) = service(|request| match request.header("authorization") {
        "to=ken" => answer(200, "", document("CONTAINER", in_an_hour()).as_bytes()),
        _ => answer(403, "", b"who?"),
    });
    let token = Secret::Text("to=ken".to_owned());
    assert_eq!(ask(container(endpoint.url(), Some(token))).unwrap(), "CONTAINER t=/+==");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    fs::write(&path, "to=ken\n").unwrap();
    assert_eq!(ask(container(endpoint.url(), Some(Secret::File(path)))).unwrap(), "CONTAINER t=/+==");
    let error = ask(container(endpoint.url(), None)).unwrap_err();
    assert!(!error.is_temporary());
    assert!(error.to_string().contains("the container's endpoint answers with status 403"), "{error}");
}

#[test]
fn a_containers_token_goes_to_no_other_machine_in_the_clear() {
    let token = Secret::Text("to=ken".to_owned());
    let error = ask(container("http://192.0.2.1/x".to_owned(), Some(token))).unwrap_err();
    assert!(error.to_string().contains("so the token is not sent there"), "{error}");
}

/// The metadata service in its second version: nothing without a token.
fn metadata(request: &Request) -> Vec<u8> {
    let is_allowed = request.header("x-aws-ec2-metadata-token") == "session";
    match (request.method.as_str(), request.path.as_str()) {
        ("PUT", "/latest/api/token") if request.header("x-aws-ec2-metadata-token-ttl-seconds") == "21600" => {
            answer(200, "", b"session")
        }
        ("GET", "/latest/meta-data/iam/security-credentials/") if is_allowed => answer(200, "", b"role"),
        ("GET", "/latest/meta-data/iam/security-credentials/role") if is_allowed => {
            answer(200, "", document("INSTANCE", in_an_hour()).as_bytes())
        }
        _ => answer(401, "", b""),
    }
}

#[test]
fn an_instances_metadata_is_asked_in_its_second_version() {
    let (service, requests) = service(metadata);
    let source = CredentialSource::Instance { endpoint: service.url() };
    assert_eq!(ask(source).unwrap(), "INSTANCE t=/+==");
    assert_eq!(requests.lock().len(), 3);
}

#[test]
fn where_no_place_has_any_the_error_says_so_and_the_way_out() {
    let source = CredentialSource::Instance { endpoint: "http://127.0.0.1:1".to_owned() };
    let error = ask(source).unwrap_err();
    assert!(!error.is_temporary());
    let text = error.to_string();
    assert!(text.contains("there are no credentials: none of the usual places has any"), "{text}");
    assert!(
        text.ends_with("; give them in the environment or in a profile, as for the usual AWS tools"),
        "{text}"
    );
}

#[test]
fn a_failure_is_not_kept_and_what_expired_is_renewed() {
    let (service, requests) = {
        let answers = Mutex::new(vec![
            answer(200, "", document("FOURTH", in_an_hour()).as_bytes()),
            answer(200, "", document("THIRD", SystemTime::now() - Duration::from_secs(10)).as_bytes()),
            answer(200, "", b"nonsense"),
            answer(500, "", b""),
        ]);
        service(move |_| answers.lock().pop().unwrap())
    };
    let bank = Bank::open();
    let store = bank.store(vec![container(service.url(), None)]);
    let temporary = store.head(&key("x"), &forever()).unwrap_err();
    assert!(temporary.is_temporary(), "{temporary}");
    let permanent = store.head(&key("x"), &forever()).unwrap_err();
    assert!(!permanent.is_temporary(), "{permanent}");
    for _ in 0..3 {
        store.head(&key("x"), &forever()).unwrap();
    }
    assert_eq!(bank.seen(), ["THIRD t=/+==", "FOURTH t=/+==", "FOURTH t=/+=="]);
    assert_eq!(requests.lock().len(), 4);
}

#[test]
fn credentials_are_renewed_before_they_expire_and_serve_until_then() {
    let expires = SystemTime::now() + SOON_OVER;
    let text = humantime::format_rfc3339_millis(expires).to_string();
    let first = format!(r#"{{"AccessKeyId":"FIRST","SecretAccessKey":"s","Expiration":"{text}"}}"#);
    let answers = Mutex::new(vec![
        answer(200, "", document("SECOND", in_an_hour()).as_bytes()),
        answer(500, "", b""),
        answer(200, "", first.as_bytes()),
    ]);
    let (service, requests) = service(move |_| answers.lock().pop().unwrap());
    let bank = Bank::open();
    let store = bank.store(vec![container(service.url(), None)]);
    let (_holder, never) = fin();
    eventually("they are renewed", || {
        let _ = never.wait(&Until::within(Duration::from_millis(20)));
        // Also the call whose renewal fails succeeds, with what is still good.
        store.head(&key("x"), &forever()).unwrap();
        requests.lock().len() == 3
    });
    assert!(SystemTime::now() < expires, "they were renewed after they had expired");
    let seen = bank.seen();
    let (last, before) = seen.split_last().unwrap();
    assert_eq!(last, "SECOND t=/+==");
    assert!(before.len() >= 2 && before.iter().all(|who| who == "FIRST "), "{before:?}");
}

/// The life of credentials that are to be renewed soon: the last quarter of it is left for that.
const SOON_OVER: Duration = Duration::from_secs(8);

/// Credentials that are to be renewed soon.
fn soon_over(id: &str) -> String {
    let expires = humantime::format_rfc3339_millis(SystemTime::now() + SOON_OVER);
    format!(r#"{{"AccessKeyId":"{id}","SecretAccessKey":"s","Token":"t","Expiration":"{expires}"}}"#)
}

#[test]
fn calls_that_come_before_there_are_any_share_one_look() {
    let (service, requests) = service(move |_| answer(200, "", document("SAME", in_an_hour()).as_bytes()));
    let bank = Bank::open();
    let store = Arc::new(bank.store(vec![container(service.url(), None)]));
    let threads: Vec<_> = (0..8)
        .map(|number| {
            let store = Arc::clone(&store);
            spawn(format!("caller {number}"), move || store.head(&key("x"), &watchdog()).unwrap()).unwrap()
        })
        .collect();
    for thread in threads {
        thread.join(&watchdog()).unwrap();
    }
    assert_eq!(bank.seen().len(), 8);
    assert_eq!(requests.lock().len(), 1, "one look serves all");
}

#[test]
fn while_one_call_renews_the_others_go_on_with_what_is_good() {
    // Three quarters of the time of the first ones pass before they are renewed, which takes until the test says so.
    let (go_on, told) = fin();
    let asked = Arc::new(AtomicUsize::new(0));
    let looks = Arc::clone(&asked);
    let (service, _) = service(move |_| {
        if looks.fetch_add(1, Ordering::SeqCst) == 0 {
            return answer(200, "", soon_over("FIRST").as_bytes());
        }
        told.wait(&watchdog()).unwrap();
        answer(200, "", document("SECOND", in_an_hour()).as_bytes())
    });
    let bank = Bank::open();
    let store = Arc::new(bank.store(vec![container(service.url(), None)]));
    let look = || assert_eq!(store.head(&key("x"), &watchdog()).unwrap(), None);
    look();
    let renewing = {
        let (store, asked) = (Arc::clone(&store), Arc::clone(&asked));
        spawn("renewing", move || {
            let (_holder, never) = fin();
            while asked.load(Ordering::SeqCst) < 2 {
                let _ = never.wait(&Until::within(Duration::from_millis(20)));
                store.head(&key("x"), &watchdog()).unwrap();
            }
        })
        .unwrap()
    };
    eventually("they are being renewed", || asked.load(Ordering::SeqCst) == 2);
    let before = bank.seen().len();
    (0..3).for_each(|_| look());
    assert!(bank.seen()[before..].iter().all(|who| who == "FIRST t"), "{:?}", bank.seen());
    assert_eq!(asked.load(Ordering::SeqCst), 2, "one call renews");
    drop(go_on);
    renewing.join(&watchdog()).unwrap();
    look();
    assert_eq!(bank.seen().last().unwrap(), "SECOND t=/+==");
}

#[test]
fn credentials_that_nothing_renews_are_not_tried_again_when_they_are_too_old() {
    let (server, requests) = service(|_| answer(400, "", &error_document("ExpiredToken", "It has expired.")));
    let given = CredentialSource::Given(Credentials {
        access_key_id: "GIVEN".to_owned(),
        secret_access_key: "secret".to_owned(),
        session_token: Some("t".to_owned()),
        expires: None,
    });
    let instance = CredentialSource::Instance { endpoint: "http://127.0.0.1:1".to_owned() };
    let files = Files::new(
        "[default]\naws_access_key_id = DEFAULT\naws_secret_access_key = s\naws_session_token = t\n",
        "",
    );
    for source in [given, files.profile("default")] {
        let config = S3Config {
            endpoint: Some(server.url()),
            path_style: true,
            credentials: vec![source, instance.clone()],
            ..S3Config::new("bucket", "us-east-1")
        };
        let bare = Box::new(S3Store::open(config).unwrap());
        let store = Layer::new(bare, Retry::new(RetryConfig::default()));
        let error = store.list(None, &watchdog()).unwrap_err();
        assert!(!error.is_temporary(), "{error}");
        assert!(error.to_string().ends_with("; get new credentials"), "{error}");
        assert_eq!(requests.lock().drain(..).count(), 1);
    }
}

#[test]
fn the_usual_places_are_those_that_the_variables_name() {
    let places = |variables: &[(&str, &str)]| {
        let variables: BTreeMap<&str, &str> = variables.iter().copied().collect();
        let sources = CredentialSource::usual(&|name| variables.get(name).map(|value| (*value).to_owned()));
        let names = sources.iter().map(|source| match source {
            CredentialSource::Given(given) => given.access_key_id.clone(),
            CredentialSource::WebIdentity { endpoint, session_name, .. } => {
                format!("{endpoint} {session_name}")
            }
            CredentialSource::Profile { name, config_file, .. } => {
                format!("{name} {}", config_file.display())
            }
            CredentialSource::Container { url, authorization } => format!("{url} {authorization:?}"),
            CredentialSource::Instance { endpoint } => endpoint.clone(),
            _ => "another".to_owned(),
        });
        names.collect::<Vec<_>>()
    };
    assert_eq!(places(&[]), ["http://169.254.169.254"]);
    assert!(places(&[("AWS_EC2_METADATA_DISABLED", "true")]).is_empty());
    let all = [
        ("AWS_ACCESS_KEY_ID", "ID"),
        ("AWS_SECRET_ACCESS_KEY", "s"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "/token"),
        ("AWS_ROLE_ARN", "arn"),
        ("AWS_REGION", "eu-west-1"),
        ("HOME", "/home/me"),
        ("AWS_PROFILE", "work"),
        ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v2/x"),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "secret"),
    ];
    assert_eq!(
        places(&all),
        [
            "ID",
            "https://sts.eu-west-1.amazonaws.com dormouse",
            "work /home/me/.aws/config",
            "http://169.254.170.2/v2/x Some(Text(…))",
        ]
    );
}
