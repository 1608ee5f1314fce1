//! The named test points of cluster hooks; see `testing::points`.

/// Before slots are leased.
pub const SLOT_BEFORE_LEASE: &str = "slot.before-lease";
/// Slots are leased, and what is pending has not been read.
pub const SLOT_LEASED: &str = "slot.leased";
/// What is pending has been read, and what the tail brings is not taken in yet.
pub const SLOT_READ: &str = "slot.read";
/// Before a heartbeat is sent.
pub const SLOT_BEFORE_HEARTBEAT: &str = "slot.before-heartbeat";
/// The answer to a heartbeat is there, and not taken note of.
pub const SLOT_AFTER_HEARTBEAT: &str = "slot.after-heartbeat";
/// The server's lease has ended by its own clock, and it has not given up its slots yet.
pub const SLOT_BEFORE_LAPSE: &str = "slot.before-lapse";
/// Before low watermarks are raised.
pub const SLOT_BEFORE_WATERMARK: &str = "slot.before-watermark";
/// Before slots are released.
pub const SLOT_BEFORE_RELEASE: &str = "slot.before-release";
/// Before a run starts.
pub const RUN_BEFORE_START: &str = "run.before-start";
/// It was found that a run may begin, and nothing of it has begun.
pub const RUN_STARTING: &str = "run.starting";
/// Before receipts are sent.
pub const RUN_BEFORE_RECEIPT: &str = "run.before-receipt";
/// Receipts are durable, and the owner has not been told.
pub const RUN_AFTER_RECEIPT: &str = "run.after-receipt";
/// It is not known whether a run's writes and receipt are committed, and nothing was done to find out.
pub const RUN_OUTCOME_UNKNOWN: &str = "run.outcome-unknown";
/// Before a run's writes and receipt are sent together.
pub const RUN_BEFORE_COMPLETION: &str = "run.before-completion";
