//! A set of requests, as bits, so that a state is small and quickly hashed.

use std::fmt;

/// A request goes by its revision, from 1: in the model each transaction makes one change.
pub(crate) type Request = u8;

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(crate) struct Requests(u16);

impl Requests {
    pub(crate) fn has(self, request: Request) -> bool {
        self.0 & (1 << request) != 0
    }

    pub(crate) fn insert(&mut self, request: Request) {
        self.0 |= 1 << request;
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) fn and(self, other: Requests) -> Requests {
        Requests(self.0 & other.0)
    }

    pub(crate) fn or(self, other: Requests) -> Requests {
        Requests(self.0 | other.0)
    }

    pub(crate) fn without(self, other: Requests) -> Requests {
        Requests(self.0 & !other.0)
    }

    pub(crate) fn iter(self) -> impl DoubleEndedIterator<Item = Request> {
        (0..16).filter(move |request| self.has(*request))
    }

    pub(crate) fn first(self) -> Option<Request> {
        self.iter().next()
    }

    pub(crate) fn last(self) -> Option<Request> {
        self.iter().next_back()
    }
}

impl FromIterator<Request> for Requests {
    fn from_iter<I: IntoIterator<Item = Request>>(requests: I) -> Requests {
        let mut set = Requests::default();
        requests.into_iter().for_each(|request| set.insert(request));
        set
    }
}

impl fmt::Debug for Requests {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_set().entries(self.iter()).finish()
    }
}
