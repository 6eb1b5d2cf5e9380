//! Profiles in the files of the AWS tools:
//! <https://docs.aws.amazon.com/sdkref/latest/guide/file-format.html>.
//!
//! The files look like INI and are read by rules of their own: quotes and backslashes stand for themselves, a comment
//! may follow a header but no value, names of settings have no case, and settings that are indented deeper belong to
//! the one before. A reader of INI that knows other rules takes a profile for an empty one, and the next place is asked.
//!
//! Invariant: what the tools find in a profile is found here, or it is an error; nothing of a file is shown.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

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

/// The settings of a profile.
type Section = HashMap<String, String>;

/// Sections by the words of their headers.
type Sections = HashMap<Vec<String>, Section>;

/// What the profile holds. None of the files, or no such profile where it is the default: nothing.
pub(super) fn look(name: &str, files: &Files<'_>, until: &Until) -> Result<Option<Found>, Missing> {
    let (mut credentials, mut config) = (load(files.credentials)?, load(files.config)?);
    let (plain, prefixed) = (vec![name.to_owned()], vec!["profile".to_owned(), name.to_owned()]);
    let in_config = config.remove(&prefixed).or_else(|| config.remove(&plain).filter(|_| name == "default"));
    let sections: Vec<Section> = [credentials.remove(&plain), in_config].into_iter().flatten().collect();
    if sections.is_empty() && name == "default" {
        return Ok(None);
    }
    if sections.is_empty() {
        let (credentials, config) = (files.credentials.display(), files.config.display());
        return Err(Missing::permanent(format!("there is no profile {name} in {credentials} or {config}")));
    }
    let value = |key: &str| sections.iter().find_map(|section| section.get(key)).cloned();
    // Keys beside a role are those that it is assumed with, so they are not the profile's own.
    let assumes = value("source_profile").or_else(|| value("credential_source"));
    if assumes.is_some() && value("role_arn").is_some() {
        return Err(Missing::permanent(format!(
            "the profile {name} is a role, which is not assumed here; name a process that gives its credentials"
        )));
    }
    for section in &sections {
        let pair = (section.get("aws_access_key_id"), section.get("aws_secret_access_key"));
        if let (Some(access_key_id), Some(secret_access_key)) = pair {
            return Ok(Some(Found::Credentials(Credentials {
                access_key_id: access_key_id.to_owned(),
                secret_access_key: secret_access_key.to_owned(),
                session_token: section.get("aws_session_token").cloned(),
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

fn load(path: &Path) -> Result<Sections, Missing> {
    let text = match std::fs::read_to_string(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Sections::new()),
        read => read.map_err(|e| Missing::permanent(format!("{} cannot be read: {e}", path.display())))?,
    };
    read_sections(&text).map_err(|line| {
        Missing::permanent(format!("{} is no file of profiles: line {line} is off", path.display()))
    })
}

/// The sections of a file, or the number of the line that belongs to none or is no setting.
fn read_sections(text: &str) -> Result<Sections, usize> {
    let mut sections = Sections::new();
    let mut current: Option<&mut Section> = None;
    // Of the setting before, which what stands deeper belongs to.
    let mut setting_at: Option<usize> = None;
    for (line, number) in text.trim_start_matches('\u{feff}').lines().zip(1_usize..) {
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with(['#', ';']) {
            continue;
        }
        let at = line.len() - line.trim_start().len();
        if setting_at.is_some_and(|setting_at| at > setting_at) {
            continue;
        }
        if let Some(header) = trimmed.strip_prefix('[') {
            let (words, _) = header.split_once(']').ok_or(number)?;
            current = Some(sections.entry(shlex::split(words).ok_or(number)?).or_default());
            setting_at = None;
            continue;
        }
        let (key, value) = trimmed.split_once(['=', ':']).ok_or(number)?;
        let section = current.as_mut().ok_or(number)?;
        setting_at = Some(at);
        section.insert(key.trim().to_ascii_lowercase(), value.trim().to_owned());
    }
    Ok(sections)
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
