//! Whether a version fits in a region, decided before anything is copied.

use std::collections::BTreeMap;

use crate::engine::{Capacity, EngineError, FatalKind};

/// A node that would have to load the version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeNeed {
    /// Its place among the region's nodes.
    pub(crate) place: usize,
    /// Its name.
    pub(crate) name: String,
    /// What it needs and has.
    pub(crate) capacity: Capacity,
}

/// Which of the nodes have no room, where the others are enough; an error where they are not.
///
/// What several take from one volume is added up: first the region's copy, then the nodes in order.
/// `holding` nodes have the version already and need nothing.
pub(crate) fn check(
    copy: Option<&Capacity>,
    needs: &[NodeNeed],
    holding: usize,
    enough: usize,
) -> Result<Vec<(usize, EngineError)>, EngineError> {
    let mut taken: BTreeMap<&str, u64> = BTreeMap::new();
    let mut fits = |capacity: &Capacity| -> Result<(), (u64, u64)> {
        let Some(free) = capacity.free_bytes else {
            return Ok(());
        };
        let before = capacity.volume.as_deref().and_then(|volume| taken.get(volume)).copied().unwrap_or(0);
        let needed = before.saturating_add(capacity.needed_bytes);
        if needed > free {
            return Err((needed, free));
        }
        if let Some(volume) = &capacity.volume {
            // The key borrows from what outlives this function's body: the arguments.
            taken.insert(volume_key(copy, needs, volume), needed);
        }
        Ok(())
    };
    if let Some(capacity) = copy
        && let Err((needed, free)) = fits(capacity)
    {
        return Err(full("the region's copy", needed, free));
    }
    let mut without_room = Vec::new();
    for need in needs {
        if let Err((needed, free)) = fits(&need.capacity) {
            without_room.push((need.place, full(&format!("node {}", need.name), needed, free)));
        }
    }
    let left = holding + needs.len() - without_room.len();
    match without_room.first() {
        Some((_, error)) if left < enough => Err(error.clone()),
        _ => Ok(without_room),
    }
}

fn volume_key<'a>(copy: Option<&'a Capacity>, needs: &'a [NodeNeed], volume: &str) -> &'a str {
    copy.into_iter()
        .chain(needs.iter().map(|need| &need.capacity))
        .filter_map(|capacity| capacity.volume.as_deref())
        .find(|known| *known == volume)
        .unwrap_or("")
}

fn full(place: &str, needed: u64, free: u64) -> EngineError {
    EngineError::fatal(
        FatalKind::DiskFull,
        format!("{place} has no room: {needed} bytes needed on its volume, {free} free; nothing was copied"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capacity(needed_bytes: u64, free_bytes: Option<u64>, volume: &str) -> Capacity {
        Capacity { needed_bytes, free_bytes, volume: Some(volume.to_owned()) }
    }

    fn need(place: usize, capacity: Capacity) -> NodeNeed {
        NodeNeed { place, name: format!("node-{place}"), capacity }
    }

    #[test]
    fn n2_one_byte_short_is_refused_with_both_figures() {
        let fits = [need(0, capacity(100, Some(100), "a"))];
        assert_eq!(check(None, &fits, 0, 1), Ok(vec![]));
        let short = [need(0, capacity(100, Some(99), "a"))];
        let error = check(None, &short, 0, 1).unwrap_err();
        assert_eq!(error.kind(), FatalKind::DiskFull);
        assert!(error.to_string().contains("100 bytes needed") && error.to_string().contains("99 free"), "{error}");
    }

    #[test]
    fn n2_what_shares_a_volume_is_added_up() {
        let nodes = [need(0, capacity(100, Some(250), "a")), need(1, capacity(100, Some(250), "a"))];
        assert_eq!(check(Some(&capacity(50, Some(250), "a")), &nodes, 0, 2), Ok(vec![]));
        let error = check(Some(&capacity(51, Some(250), "a")), &nodes, 0, 2).unwrap_err();
        assert!(error.to_string().contains("251 bytes needed"), "{error}");
        assert_eq!(check(Some(&capacity(51, Some(250), "b")), &nodes, 0, 2), Ok(vec![]));
    }

    #[test]
    fn n2_a_node_without_room_is_left_out_where_the_others_are_enough() {
        let nodes = [need(0, capacity(100, Some(10), "a")), need(1, capacity(100, Some(250), "b"))];
        let left_out = check(None, &nodes, 1, 2).unwrap();
        assert_eq!(left_out.iter().map(|(place, _)| *place).collect::<Vec<_>>(), [0]);
        assert!(check(None, &nodes, 0, 2).is_err());
    }

    #[test]
    fn n2_without_a_figure_nothing_is_refused() {
        assert_eq!(check(None, &[need(0, capacity(u64::MAX, None, "a"))], 0, 1), Ok(vec![]));
    }
}
