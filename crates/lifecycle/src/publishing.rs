//! Publishing a configuration: one whole file in force at a time, and the generation tells which.

use tidegate_state::{State, Transaction, TransactionBuilder, TransactionError, WriteError};

use crate::configuration::{HooksConfiguration, Refusal};
use crate::hooks_file::HooksFile;
use crate::lifecycle::Lifecycle;
use crate::validation::Surroundings;

/// What became of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The generation in force.
    pub generation: u64,
    /// Whether that is a new one; equal files make none.
    pub changed: bool,
}

/// What a server that starts found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirstPublished {
    /// It was the first, and its own file is in force.
    Published,
    /// What is in force is what its file says.
    Equal {
        /// The generation in force.
        generation: u64,
    },
    /// Its file says otherwise. The published configuration decides.
    Differs {
        /// The generation in force.
        generation: u64,
        /// What is different, for people: `region-order.delay is "1h", the file says "2h"`.
        differences: Vec<String>,
    },
}

/// Why a configuration was not published. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// A hook, or the framework, refused it.
    #[error("{0}")]
    Refused(Refusal),
    /// It could not be written.
    #[error("the hooks configuration could not be published: {0}")]
    Write(#[from] WriteError<TransactionError>),
}

impl From<Refusal> for PublishError {
    fn from(refusal: Refusal) -> Self {
        PublishError::Refused(refusal)
    }
}

impl Lifecycle {
    /// Publishes a file once every hook that it configures has accepted it.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn publish(
        &self,
        state: &State,
        file: &HooksFile,
        by: &str,
        surroundings: &Surroundings,
    ) -> Result<Published, PublishError> {
        self.publish_with(state.transaction(), file, by, surroundings, |_| Ok(())).await
    }

    /// As [`Lifecycle::publish`], in a transaction that has attributes of the caller's own, and in which `beside` is
    /// written, too.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn publish_with(
        &self,
        transaction: TransactionBuilder,
        file: &HooksFile,
        by: &str,
        surroundings: &Surroundings,
        beside: impl Fn(&mut Transaction) -> Result<(), TransactionError> + Send + 'static,
    ) -> Result<Published, PublishError> {
        self.validate_file(file, surroundings).await?;
        let (file, by) = (file.clone(), by.to_owned());
        let committed = transaction.write(move |transaction| -> Result<_, TransactionError> {
            let published = publish(transaction, &file, &by)?;
            beside(transaction)?;
            Ok(published)
        });
        let committed = committed.await?;
        self.metrics().generation(committed.value.generation);
        Ok(committed.value)
    }

    /// Publishes a server's own file if nothing is published yet, and says how it compares otherwise. A file that could
    /// not be read, or that a hook refuses, keeps the first server from starting, for a missing gate is never silent; a
    /// server that joins gates by what is published.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn publish_first(
        &self,
        state: &State,
        file: Result<&HooksFile, Refusal>,
        surroundings: &Surroundings,
    ) -> Result<FirstPublished, PublishError> {
        let place = HooksConfiguration::place();
        if let Ok(Some(there)) = state.snapshot().get(&place) {
            return Ok(self.compare(there, file));
        }
        let own = file?.clone();
        self.validate_file(&own, surroundings).await?;
        let (written, by) = (own.clone(), state.server().to_string());
        let committed = state
            .write(move |transaction| -> Result<_, TransactionError> {
                let there = transaction.get(&HooksConfiguration::place())?;
                if there.is_none() {
                    publish(transaction, &written, &by)?;
                }
                Ok(there)
            })
            .await?;
        Ok(match committed.value {
            Some(there) => self.compare(&there, Ok(&own)),
            None => {
                self.metrics().configuration(1, false);
                FirstPublished::Published
            }
        })
    }

    fn compare(&self, there: &HooksConfiguration, file: Result<&HooksFile, Refusal>) -> FirstPublished {
        let generation = there.generation;
        let differences = match file {
            Ok(file) if file.digest() == there.digest => Vec::new(),
            Ok(file) => differences(there, &file.configuration(0, "")),
            Err(refusal) => vec![format!("the file was refused: {}", refusal.why)],
        };
        self.metrics().configuration(generation, !differences.is_empty());
        if differences.is_empty() {
            return FirstPublished::Equal { generation };
        }
        tracing::warn!(
            generation,
            differences = differences.join("; "),
            "this server's hooks configuration differs from the published one, which decides"
        );
        FirstPublished::Differs { generation, differences }
    }
}

/// Puts a file in force; equal files make no new generation.
fn publish(transaction: &mut Transaction, file: &HooksFile, by: &str) -> Result<Published, TransactionError> {
    let place = HooksConfiguration::place();
    let there = transaction.get(&place)?;
    let generation = there.as_ref().map_or(0, |there| there.generation);
    if there.is_some_and(|there| there.digest == file.digest()) {
        return Ok(Published { generation, changed: false });
    }
    transaction.put(&place, file.configuration(generation + 1, by))?;
    Ok(Published { generation: generation + 1, changed: true })
}

/// What two configurations say differently, for people.
#[must_use]
pub fn differences(published: &HooksConfiguration, file: &HooksConfiguration) -> Vec<String> {
    let mut differences = Vec::new();
    let mut compare = |name: String, published: Option<String>, file: Option<String>| {
        if published != file {
            let text = |value: Option<String>| value.unwrap_or_else(|| "not set".to_owned());
            differences.push(format!("{name} is {}, the file says {}", text(published), text(file)));
        }
    };
    compare("enabled".to_owned(), Some(published.enabled.join(", ")), Some(file.enabled.join(", ")));
    let number = |number: u64| Some(number.to_string());
    compare("threads".to_owned(), number(published.threads.into()), number(file.threads.into()));
    compare("timeout_ms".to_owned(), number(published.timeout_ms), number(file.timeout_ms));
    compare("wait_interval_ms".to_owned(), number(published.wait_interval_ms), number(file.wait_interval_ms));
    let value = |configuration: &HooksConfiguration, hook: &str, key: &str| {
        configuration.hooks.get(hook).and_then(|settings| settings.get(key)).map(|value| format!("{value:?}"))
    };
    let mut seen = std::collections::BTreeSet::new();
    for (hook, settings) in published.hooks.iter().chain(&file.hooks) {
        for key in settings.keys() {
            if seen.insert((hook, key)) {
                compare(format!("{hook}.{key}"), value(published, hook, key), value(file, hook, key));
            }
        }
    }
    differences
}
