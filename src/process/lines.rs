//! Bytes to lines, with bounded memory whatever a process writes.

/// Bytes of a line that are kept.
pub const MAX_LINE_BYTES: usize = 16 * 1024;
/// Follows the text of a line that was longer.
pub const CUT_MARK: &str = "… (cut)";

/// Cuts a byte stream into lines, whatever the size of the chunks, with bounded memory: at most
/// [`MAX_LINE_BYTES`] are held. The rest of a longer line is discarded and [`CUT_MARK`] added.
/// Bytes that are no UTF-8 become U+FFFD.
#[derive(Debug, Default)]
pub struct LineSplitter {
    /// The unfinished line.
    line: Vec<u8>,
    /// The unfinished line was longer than what is held.
    cut: bool,
}

impl LineSplitter {
    /// A splitter at the start of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a chunk and gives the lines that it completes, without `\n` or `\r\n`.
    pub fn feed(&mut self, chunk: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        let mut rest = chunk;
        while let Some(end) = rest.iter().position(|b| *b == b'\n') {
            self.hold(&rest[..end]);
            lines.push(self.take());
            rest = &rest[end + 1..];
        }
        self.hold(rest);
        lines
    }

    /// Ends the stream and gives its last line if that has no newline.
    pub fn finish(&mut self) -> Option<String> {
        (!self.line.is_empty()).then(|| self.take())
    }

    fn hold(&mut self, bytes: &[u8]) {
        let room = MAX_LINE_BYTES - self.line.len();
        let kept = bytes.len().min(room);
        self.line.extend_from_slice(&bytes[..kept]);
        self.cut |= kept < bytes.len();
    }

    fn take(&mut self) -> String {
        let bytes = self.line.strip_suffix(b"\r").unwrap_or(&self.line);
        // Nobody's terminal or page is to be driven by what a process prints.
        let printable = |c: char| if c.is_control() && c != '\t' { '\u{fffd}' } else { c };
        let mut text: String = String::from_utf8_lossy(bytes).chars().map(printable).collect();
        if std::mem::take(&mut self.cut) {
            // The cut may have gone through a character.
            text.truncate(text.trim_end_matches('\u{fffd}').len());
            text.push_str(CUT_MARK);
        }
        self.line.clear();
        text
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn long_lines_are_cut() {
        let mut splitter = LineSplitter::new();
        let (exact, almost) = ("x".repeat(MAX_LINE_BYTES), "x".repeat(MAX_LINE_BYTES - 1));
        assert_eq!(splitter.feed(format!("{exact}\n").as_bytes()), [exact.as_str()]);
        let cut = splitter.feed(format!("{almost}äöü{exact}\nnext").as_bytes());
        assert_eq!(cut, [format!("{almost}{CUT_MARK}")]);
        assert_eq!(splitter.finish().as_deref(), Some("next"));
        assert_eq!(splitter.finish(), None);
        assert_eq!(splitter.feed(b"a\r\n\nb\xff\n"), ["a", "", "b\u{fffd}"]);
    }

    proptest! {
        #[test]
        fn chunks_do_not_matter(
            parts in proptest::collection::vec(("[ -~ä…\r\n]{0,30}", any::<u8>(), 1..900_usize), 0..8),
            size in 1..5_000_usize,
        ) {
            let repeat = |(text, byte, times): (String, u8, usize)| {
                [text.as_bytes(), &[byte]].concat().repeat(times)
            };
            let bytes: Vec<u8> = parts.into_iter().flat_map(repeat).collect();
            let read = |size: usize| {
                let mut splitter = LineSplitter::new();
                let mut lines: Vec<_> = bytes.chunks(size).flat_map(|c| splitter.feed(c)).collect();
                lines.extend(splitter.finish());
                lines
            };
            prop_assert_eq!(read(size), read(usize::MAX));
        }
    }
}
