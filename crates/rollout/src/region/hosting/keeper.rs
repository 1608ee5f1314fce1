//! Takes a region's lease, renews it, and says how the agent stands with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tidegate_api::agent::{HostClaim, HostNode};
use tidegate_state::Clock;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::identity::{Identity, IdentityFile};
use super::{Heard, Holder, Standing, next_standing};
use crate::region::agent::{AgentLimits, Jitter};
use crate::region::link::{LinkError, RegionLink};

/// What a keeper works with.
pub(crate) struct Keeper {
    pub(crate) region: String,
    pub(crate) name: String,
    pub(crate) address: Option<String>,
    pub(crate) link: Arc<dyn RegionLink>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) jitter: Jitter,
    pub(crate) limits: AgentLimits,
    pub(crate) nodes: Arc<dyn Fn() -> Vec<HostNode> + Send + Sync>,
    /// Is told whenever the control plane has answered.
    pub(crate) works: Arc<dyn Fn() + Send + Sync>,
    /// Whether this process has heard nothing yet.
    pub(crate) starting: bool,
    pub(crate) file: IdentityFile,
    pub(crate) identity: Identity,
    pub(crate) standing: watch::Sender<Standing>,
    /// Whether another agent hosts the region and this one has not, for those who ask with every read.
    pub(crate) elsewhere: Arc<AtomicBool>,
    /// Where the token goes that nodes are commanded with.
    pub(crate) token: Arc<AtomicU64>,
    /// Asks again at once: something was refused because another hosts the region, or the region is new.
    pub(crate) nudge: Arc<Notify>,
    pub(crate) shutdown: CancellationToken,
}

impl Keeper {
    /// How an agent stands before anything was heard.
    pub(crate) fn first_standing(identity: &Identity, clock: &dyn Clock) -> Standing {
        match &identity.replaced_by {
            // Whoever was replaced stays so until told otherwise, whether or not the control plane is there.
            Some(by) => Standing::Replaced { by: by.clone(), address: None, since: clock.now(), hosted_before: false },
            None => Standing::Starting,
        }
    }

    /// Keeps the lease until the agent stops. What is left then is to let go of it, with [`release`].
    pub(crate) async fn run(&mut self) {
        let mut failures: u32 = 0;
        // Whether the claim before was made because the region seemed to be free.
        let mut hastened = false;
        loop {
            let claim = self.claim();
            let limit = self.limits.heartbeat_every.min(self.limits.step).max(Duration::from_secs(1));
            let answer = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return,
                answer = tokio::time::timeout(limit, self.link.host(&claim)) => answer,
            };
            let heard = match answer {
                Ok(Ok(grant)) => Heard::Granted(Holder { agent: self.identity.agent, token: grant.token }),
                Ok(Err(LinkError::Replaced { by, address })) => Heard::Replaced { by, address },
                Ok(Err(error)) => Heard::Nothing { why: error.to_string() },
                Err(_) => Heard::Nothing { why: format!("no answer within {} s", limit.as_secs()) },
            };
            failures = if matches!(heard, Heard::Nothing { .. }) { failures.saturating_add(1) } else { 0 };
            if failures == 0 {
                self.starting = false;
                (self.works)();
            }
            self.hear(heard).await;
            let every = self.limits.heartbeat_every;
            let pause =
                if failures == 0 { every } else { self.limits.pause(failures, false, (self.jitter)()).min(every) };
            let until = self.clock.sleep_until(self.clock.now().after(pause));
            // What seemed to be free and was not is looked at again in a while: the log may be far ahead of what is seen.
            let rest = if hastened { self.limits.pause_first } else { Duration::ZERO };
            let freed = async {
                self.clock.sleep_until(self.clock.now().after(rest)).await;
                self.link.freed().await;
            };
            let waits = failures == 0 && matches!(&*self.standing.borrow(), Standing::Replaced { .. });
            hastened = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return,
                () = self.nudge.notified() => false,
                () = freed, if waits => true,
                () = until => false,
            };
        }
    }

    fn claim(&self) -> HostClaim {
        HostClaim {
            agent: self.identity.agent.to_string(),
            name: self.name.clone(),
            address: self.address.clone(),
            lease_ms: u64::try_from(self.limits.lease.as_millis()).unwrap_or(u64::MAX),
            token: self.standing.borrow().holder().map(|holder| holder.token),
            starting: self.starting,
            nodes: (self.nodes)(),
        }
    }

    async fn hear(&mut self, heard: Heard) {
        let before = self.standing.borrow().clone();
        let next = next_standing(&before, heard, self.clock.now());
        if std::mem::discriminant(&before) != std::mem::discriminant(&next) {
            match &next {
                Standing::Hosts(_) => tracing::info!(region = %self.region, "this agent hosts the region"),
                _ => {
                    tracing::warn!(region = %self.region, standing = %next.words(), "this agent no longer hosts the region, or does not know it")
                }
            }
        }
        let replaced_by = match &next {
            // The next process of this very agent has its folder, and this one is about to be gone.
            Standing::Replaced { by, .. } if by.contains(&self.identity.agent.to_string()) => None,
            Standing::Replaced { by, .. } => Some(by.clone()),
            Standing::Hosts(_) => None,
            Standing::Starting | Standing::Unconfirmed { .. } => self.identity.replaced_by.clone(),
        };
        let token = match &next {
            Standing::Hosts(holder) => holder.token,
            _ => self.identity.token,
        };
        // Only from one to the other: the words themselves change with every answer.
        if replaced_by.is_some() != self.identity.replaced_by.is_some() || token != self.identity.token {
            self.identity.replaced_by = replaced_by;
            self.identity.token = token;
            self.token.store(token, Ordering::Relaxed);
            let (file, identity) = (self.file.clone(), self.identity.clone());
            let saved = tokio::task::spawn_blocking(move || file.save(&identity)).await;
            if let Ok(Err(error)) = saved {
                tracing::error!(region = %self.region, %error, "whether the agent was replaced could not be kept on its disk");
            }
        }
        self.elsewhere.store(next.is_elsewhere(), Ordering::Relaxed);
        // Whoever waits for a change is not woken by the same word again.
        self.standing.send_if_modified(|standing| {
            let differs = *standing != next;
            *standing = next;
            differs
        });
    }
}

/// Lets go of the lease, so that another agent may take over at once. If that fails, it runs out.
pub(crate) async fn release(link: &dyn RegionLink, standing: &Standing, limit: Duration) {
    if let Some(holder) = standing.holder()
        && let Ok(Err(error)) = tokio::time::timeout(limit, link.release(holder)).await
    {
        tracing::debug!(region = link.region(), %error, "the region's lease was not let go of; it runs out");
    }
}
