//! A command that did not succeed: what is printed, and which exit code follows.

use tidegate_api::ErrorBody;
use tidegate_client::Error as ClientError;

use crate::exit::Exit;
use crate::output::{Output, Paint, plain, say, sentence};

/// Why a command failed.
#[derive(Debug)]
pub(crate) struct Failure {
    body: Box<ErrorBody>,
    exit: Exit,
}

impl Failure {
    /// What went wrong, why, what follows, and what to do.
    pub(crate) fn new(
        what: impl Into<String>,
        why: impl Into<String>,
        consequences: &str,
        countermeasures: &str,
    ) -> Self {
        Failure {
            body: Box::new(ErrorBody::new("failed", what, why, consequences, countermeasures)),
            exit: Exit::Failed,
        }
    }

    /// What a server or an agent said.
    pub(crate) fn from_body(body: Box<ErrorBody>) -> Self {
        Failure { body, exit: Exit::Failed }
    }

    pub(crate) fn usage(what: impl Into<String>, why: impl Into<String>, countermeasures: &str) -> Self {
        let body = ErrorBody::new("usage", what, why, "Nothing was done.", countermeasures);
        Failure { body: Box::new(body), exit: Exit::Usage }
    }

    #[must_use]
    pub(crate) fn with_exit(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }

    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }

    /// Why it failed.
    #[cfg(test)]
    pub(crate) fn why(&self) -> &str {
        &self.body.why
    }

    /// Prints it on standard error, as text or as one JSON object.
    pub(crate) fn print(&self, output: Output) {
        if output.is_json() {
            if let Ok(json) = serde_json::to_string(&self.body) {
                say(&json);
            }
            return;
        }
        let style = output.error_style;
        say(&format!(
            "{} {}",
            style.paint(Paint::Bad, "error:"),
            plain(self.body.what.trim_end().trim_end_matches('.'))
        ));
        for (title, text) in [
            ("why", &self.body.why),
            ("what follows", &self.body.consequences),
            ("what to do", &self.body.countermeasures),
        ] {
            if !text.is_empty() {
                say(&format!("  {} {}", style.paint(Paint::Quiet, &format!("{title}:")), plain(&sentence(text))));
            }
        }
        if !self.body.subjects.is_empty() {
            say(&format!("  {} {}", style.paint(Paint::Quiet, "about:"), plain(&self.body.subjects.join(", "))));
        }
    }
}

/// What helps where no server could be reached. Where one answers and is not believed, starting another does not.
fn to_reach(reason: &str) -> &'static str {
    let certificate = reason.contains("invalid peer certificate");
    if certificate && reason.contains("UnknownIssuer") {
        "This machine does not know the authority that signed the server's certificate: name the authority's certificate with \
         --ca or TIDEGATE_CA."
    } else if certificate && reason.contains("CaUsedAsEndEntity") {
        "The server's certificate is an authority's own, and no server may use one: give the server a certificate that is \
         made without CA:TRUE, or signed by that authority."
    } else if certificate && reason.contains("NotValidForName") {
        "Name the server in --url or TIDEGATE_URL as its certificate does."
    } else if certificate {
        "Mend the server's certificate, or name the authority that signed it with --ca or TIDEGATE_CA."
    } else if reason.contains("invalid HTTP version") {
        "What listens there does not speak plain HTTP: write https:// in --url or TIDEGATE_URL if it is a server with TLS."
    } else {
        "Start one with `tidegate server --data DIR`, or name another with --url or TIDEGATE_URL."
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let text = error.to_string();
        match error {
            ClientError::Refused { body, .. } => Failure { body, exit: Exit::Failed },
            ClientError::Unreachable { url, reason, tried_for, surely_not_sent } => Failure::new(
                format!("no server could be reached at {url}"),
                format!("{reason} (tried for {:.1} s)", tried_for.as_secs_f64()),
                if surely_not_sent {
                    "The server did not get the request, so nothing was changed."
                } else {
                    "It is not known whether the server got the request."
                },
                to_reach(&reason),
            )
            .with_exit(Exit::Unreachable),
            ClientError::Url { url, reason } => Failure::usage(
                format!("{url} is no address of a server"),
                reason,
                "Write for instance http://127.0.0.1:7600.",
            ),
            ClientError::TimedOut { .. } => {
                Failure::new(text, "The time that was given ran out.", "What was started goes on.", "Ask again later.")
            }
            _ => Failure::new(text, "See above.", "The command stops here.", "Mend it and repeat the command."),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Failure::new(
            "reading or writing on this machine failed",
            error.to_string(),
            "The command stops here.",
            "Mend it and repeat the command.",
        )
    }
}
