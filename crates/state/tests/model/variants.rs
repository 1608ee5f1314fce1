//! The protocol, and what it must not be: each broken variant leaves out or turns round one step.

use crate::rules::{LOST, Rule, WATERMARK};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variant {
    /// The protocol.
    Sound,
    EffectsAreNotFenced,
    ReceiptsWithoutToken,
    StartsBeforeReceipt,
    WatermarkTooHigh,
    ReadsBeforeTaking,
    RenewsLapsedLease,
    ReleasesWithRunsGoing,
    DeadLetterWithoutException,
    TokenIsNotRaised,
    RecoveryIgnoresReceipts,
    AcknowledgesWhatCameAfter,
    /// A run goes on covering changes that come while its writes are being committed.
    CoversWhileCommitting,
    /// Runs start while an exception of an earlier kind is on its way for one of their requests.
    StartsWhileParking,
    /// A server that skipped rows of the log still says that it looked at them.
    RaisesPastSkippedRows,
    /// A completion whose outcome is unknown is sent again as if it were another one.
    CompletionSentAnew,
}

impl Variant {
    /// What the checker has to find broken; nothing in the protocol itself.
    pub(crate) fn breaks(self) -> Option<&'static str> {
        match self {
            Variant::Sound => None,
            Variant::EffectsAreNotFenced | Variant::CompletionSentAnew => Some(Rule::EffectsOnce.name()),
            Variant::ReceiptsWithoutToken => Some(Rule::OnlyWhileTheTokenHolds.name()),
            Variant::StartsBeforeReceipt => Some(Rule::NextAfterReceipt.name()),
            Variant::WatermarkTooHigh
            | Variant::DeadLetterWithoutException
            | Variant::CoversWhileCommitting
            | Variant::RaisesPastSkippedRows => Some(WATERMARK),
            Variant::ReadsBeforeTaking | Variant::RecoveryIgnoresReceipts => Some(Rule::AcknowledgedStaysSo.name()),
            Variant::RenewsLapsedLease => Some(Rule::TokensStayVoid.name()),
            Variant::ReleasesWithRunsGoing => Some(Rule::NoSecondStart.name()),
            Variant::TokenIsNotRaised => Some(Rule::TokensRise.name()),
            Variant::AcknowledgesWhatCameAfter => Some(Rule::SeenBeforeAcknowledged.name()),
            Variant::StartsWhileParking => Some(LOST),
        }
    }
}
