//! The status of a push in the words of VIP-4's `/job`.

use std::collections::BTreeMap;

use tidegate_api::{ExecutionStatus, JobStatus, PushView};

/// The status over all regions: nothing is terminal while a region may still move.
pub(crate) fn overall(statuses: &[ExecutionStatus]) -> ExecutionStatus {
    if statuses.is_empty() {
        return ExecutionStatus::New;
    }
    // The least advanced of those that may still move.
    for moving in [
        ExecutionStatus::New,
        ExecutionStatus::NotCreated,
        ExecutionStatus::Started,
        ExecutionStatus::Progress,
        ExecutionStatus::EndOfPushReceived,
    ] {
        if statuses.contains(&moving) {
            return moving;
        }
    }
    let unknown = statuses.iter().filter(|status| **status == ExecutionStatus::Unknown).count();
    if unknown * 2 > statuses.len() {
        // Too little is known to say more than that it goes on.
        return ExecutionStatus::Progress;
    }
    if unknown > 0 {
        return ExecutionStatus::Unknown;
    }
    statuses.iter().copied().find(|status| *status != ExecutionStatus::Completed).unwrap_or(ExecutionStatus::Completed)
}

/// VIP-4's payload, from what people see.
pub(crate) fn job_status(view: &PushView) -> JobStatus {
    let taking_part = || view.regions.iter().filter(|region| region.left_out.is_none());
    let statuses: Vec<ExecutionStatus> = taking_part().map(|region| region.job_status).collect();
    let times: BTreeMap<String, u64> = taking_part()
        .filter_map(|region| {
            let time = region.times.get(region.job_status.word())?;
            Some((region.region.clone(), *time))
        })
        .collect();
    JobStatus {
        name: view.state.store.clone(),
        version: view.state.version.unwrap_or(0),
        push_job_id: view.state.push.clone(),
        status: overall(&statuses),
        status_update_timestamp: times.values().max().copied(),
        status_details: view.state.reason.clone(),
        extra_info: taking_part().map(|region| (region.region.clone(), region.job_status)).collect(),
        extra_info_update_timestamp: times,
        extra_details: taking_part()
            .filter_map(|region| {
                let failure = region.failure.as_ref()?;
                Some((region.region.clone(), failure.message.clone()))
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f13_nothing_is_terminal_while_a_region_may_still_move() {
        use ExecutionStatus::{
            Completed, DvcIngestionErrorDiskFull, Error, New, NotCreated, Progress, Started, Unknown,
        };
        let cases: &[(&[ExecutionStatus], ExecutionStatus)] = &[
            (&[], New),
            (&[Completed, Completed, Completed], Completed),
            (&[Completed, Error, Completed], Error),
            (&[Completed, Error, Started], Started),
            (&[Completed, NotCreated, Error], NotCreated),
            (&[Error, Unknown, Completed], Unknown),
            (&[Completed, Unknown, Unknown], Progress),
            (&[Completed, DvcIngestionErrorDiskFull], DvcIngestionErrorDiskFull),
        ];
        for (statuses, expected) in cases {
            assert_eq!(overall(statuses), *expected, "{statuses:?}");
        }
    }
}
