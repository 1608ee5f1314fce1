//! Data jobs: what will live here, and nothing yet.
//!
//! Everything about a data job's deployment will be in the database: in the state tree what is desired and what was
//! observed, as records its history and executions. A synchronizer, one cluster hook per job plus a periodic pass over the
//! same code path, renders each deployment into a manifest and makes a runtime follow: `kubernetes` (CronJobs and Jobs) or
//! `local` (processes on this machine). The public API is that of Versatile Data Kit's Control Service, unchanged
//! (VEP-2272), and reading it touches neither the runtime nor a database table.
//!
//! Planned modules: `entities`, `rendering`, `synchronizer`, `executions`, `runtime::kubernetes`, `runtime::local`, `import`.
