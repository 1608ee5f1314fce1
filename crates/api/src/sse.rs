//! The text form of watch streams.

/// The largest event that is read, in bytes: a snapshot of everything may be one.
pub const EVENT_BYTES_MAX: usize = 256 * 1024 * 1024;

/// An event as it was sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawEvent {
    /// Its name; empty if it has none.
    pub name: String,
    /// Its id; empty if it has none.
    pub id: String,
    /// Its data.
    pub data: String,
}

/// Splits what arrives into events, see "server-sent events" of the HTML standard.
#[derive(Debug, Default)]
pub struct Parser {
    buffer: Vec<u8>,
    /// How much of the buffer was looked at, so that a long event is not looked at again and
    /// again as it arrives.
    seen: usize,
    event: RawEvent,
}

impl Parser {
    /// Takes what has arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole event, if there is one.
    ///
    /// # Errors
    /// An event is longer than [`EVENT_BYTES_MAX`].
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<RawEvent>, String> {
        let mut start = 0;
        let mut found = None;
        while let Some(length) = self.buffer[start.max(self.seen)..].iter().position(|byte| *byte == b'\n') {
            let end = start.max(self.seen) + length;
            self.seen = 0;
            let line = self.buffer[start..end].strip_suffix(b"\r");
            let line = line.unwrap_or(&self.buffer[start..end]);
            start = end + 1;
            if line.is_empty() {
                let event = std::mem::take(&mut self.event);
                if event != RawEvent::default() {
                    found = Some(event);
                    break;
                }
                continue;
            }
            let line = String::from_utf8_lossy(line);
            let (field, value) = line.split_once(':').unwrap_or((&line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => value.clone_into(&mut self.event.name),
                "id" => value.clone_into(&mut self.event.id),
                "data" => {
                    if !self.event.data.is_empty() {
                        self.event.data.push('\n');
                    }
                    self.event.data.push_str(value);
                }
                // Comments, and fields that do not matter here.
                _ => {}
            }
        }
        self.buffer.drain(..start);
        self.seen = if found.is_some() { 0 } else { self.buffer.len() };
        if self.buffer.len().saturating_add(self.event.data.len()) > EVENT_BYTES_MAX {
            return Err(format!("an event is longer than {EVENT_BYTES_MAX} bytes"));
        }
        Ok(found)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const STREAM: &str = ": hello\n\nevent: change\nid: e:7\ndata: {\"a\":\ndata: 1}\r\n\r\n\
                          event: heartbeat\ndata: x\n\ndata: unfinished\n";

    fn parse(size: usize) -> Vec<RawEvent> {
        let mut parser = Parser::default();
        let mut events = Vec::new();
        for chunk in STREAM.as_bytes().chunks(size) {
            parser.push(chunk);
            while let Some(event) = parser.next().unwrap() {
                events.push(event);
            }
        }
        events
    }

    #[test]
    fn events_are_the_same_however_they_arrive() {
        let whole = parse(STREAM.len());
        assert_eq!(
            whole,
            [
                RawEvent { name: "change".to_owned(), id: "e:7".to_owned(), data: "{\"a\":\n1}".to_owned() },
                RawEvent { name: "heartbeat".to_owned(), id: String::new(), data: "x".to_owned() },
            ]
        );
        for size in 1..STREAM.len() {
            assert_eq!(parse(size), whole, "in chunks of {size}");
        }
    }
}
