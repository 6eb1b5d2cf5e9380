//! Profiles in the files of the AWS tools:
//! <https://docs.aws.amazon.com/sdkref/latest/guide/file-format.html>.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ini::{Ini, ParseOption, Properties};
use rustix::fs::{MemfdFlags, memfd_create};

use super::{Credentials, Missing, read_document};
use crate::thread::Until;

/// How often a process is looked at until it has ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// The longest output of a process.
const OUTPUT_BYTES_MAX: u64 = 1024 * 1024;

pub(super) struct Files<'a> {
    pub(super) credentials: &'a Path,
    pub(super) config: &'a Path,
}

pub(super) enum Found {
    Credentials(Credentials),
    WebIdentity { token_file: PathBuf, role_arn: String, session_name: String },
}

/// What the profile holds. None of the files, or no such profile where it is the default: nothing.
pub(super) fn look(name: &str, files: &Files<'_>, until: &Until) -> Result<Option<Found>, Missing> {
    let (credentials, config) = (load(files.credentials)?, load(files.config)?);
    let in_config = if name == "default" { "default".to_owned() } else { format!("profile {name}") };
    let sections = [
        credentials.as_ref().and_then(|file| file.section(Some(name))),
        config.as_ref().and_then(|file| file.section(Some(in_config))),
    ];
    let sections: Vec<&Properties> = sections.into_iter().flatten().collect();
    if sections.is_empty() && name == "default" {
        return Ok(None);
    }
    if sections.is_empty() {
        let (credentials, config) = (files.credentials.display(), files.config.display());
        return Err(Missing::permanent(format!("there is no profile {name} in {credentials} or {config}")));
    }
    let value = |key: &str| sections.iter().find_map(|section| section.get(key)).map(str::to_owned);
    for section in &sections {
        let pair = (section.get("aws_access_key_id"), section.get("aws_secret_access_key"));
        if let (Some(access_key_id), Some(secret_access_key)) = pair {
            return Ok(Some(Found::Credentials(Credentials {
                access_key_id: access_key_id.to_owned(),
                secret_access_key: secret_access_key.to_owned(),
                session_token: section.get("aws_session_token").map(str::to_owned),
                expires: None,
            })));
        }
    }
    if let (Some(token_file), Some(role_arn)) = (value("web_identity_token_file"), value("role_arn")) {
        let session_name = value("role_session_name").unwrap_or_else(|| "dormouse".to_owned());
        return Ok(Some(Found::WebIdentity { token_file: token_file.into(), role_arn, session_name }));
    }
    if let Some(line) = value("credential_process") {
        return run(name, &line, until).map(|found| Some(Found::Credentials(found)));
    }
    if name == "default" && value("role_arn").is_none() && value("sso_start_url").is_none() {
        return Ok(None);
    }
    Err(Missing::permanent(format!(
        "the profile {name} has neither keys nor a credential_process nor a web identity; for a role or a sign-on \
         name a process that gives its credentials"
    )))
}

fn load(path: &Path) -> Result<Option<Ini>, Missing> {
    let text = match std::fs::read_to_string(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|e| Missing::permanent(format!("{} cannot be read: {e}", path.display())))?,
    };
    // A token may hold quotes, backslashes and equals signs, which stand for themselves.
    let options = ParseOption {
        enabled_quote: false,
        enabled_escape: false,
        enabled_preserve_key_leading_whitespace: true,
        ..ParseOption::default()
    };
    // The text holds secrets, so nothing of it is shown.
    let parsed = Ini::load_from_str_opt(&text, options).map_err(|e| {
        Missing::permanent(format!("{} is no file of profiles: line {} is off", path.display(), e.line))
    })?;
    Ok(Some(parsed))
}

/// Ends the process when it is dropped before its end was seen.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Fails only for a process that has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// <https://docs.aws.amazon.com/sdkref/latest/guide/feature-process-credentials.html>; no shell is involved.
fn run(profile: &str, line: &str, until: &Until) -> Result<Credentials, Missing> {
    let whose = format!("the credential_process of profile {profile}");
    let failed = |what: &dyn std::fmt::Display| Missing::permanent(format!("{whose} {what}"));
    let words = shlex::split(line).unwrap_or_default();
    let (program, arguments) =
        words.split_first().ok_or_else(|| failed(&"is no command line: its quotes are off"))?;
    // A file, because a pipe could be full, or held open by a process that it leaves behind. One in memory, so that
    // no folder has to be looked for.
    let output = memfd_create("dormouse-credentials", MemfdFlags::CLOEXEC).map_err(|e| failed(&e))?;
    let mut output = File::from(output);
    let stdout = output.try_clone().map_err(|e| failed(&e))?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(stdout).stderr(Stdio::null());
    let child = command.spawn().map_err(|e| failed(&format_args!("cannot be started: {e}")))?;
    let mut running = Running(child);
    let status = loop {
        if let Some(status) = running.0.try_wait().map_err(|e| failed(&e))? {
            break status;
        }
        until.pause(LOOK_INTERVAL).map_err(crate::objstore::error::StoreCause::from)?;
    };
    if !status.success() {
        return Err(failed(&format_args!("ended with {status}")));
    }
    let read = read_from_start(&mut output).map_err(|e| failed(&e))?;
    read_document(&read, &whose)
}

fn read_from_start(file: &mut File) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    file.rewind()?;
    file.take(OUTPUT_BYTES_MAX).read_to_end(&mut all)?;
    Ok(all)
}
