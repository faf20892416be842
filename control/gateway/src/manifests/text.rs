//! Decodes files as kubectl does: UTF-8, or UTF-16 with a byte order mark, as some Windows tools write it. Bytes that are no text are replaced,
//! so that a comment in another encoding costs nothing.

/// The text of a file, without its byte order mark.
pub(super) fn decode(bytes: Vec<u8>) -> String {
    match bytes.as_slice() {
        [0xff, 0xfe, rest @ ..] => decode_utf16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => decode_utf16(rest, u16::from_be_bytes),
        [0xef, 0xbb, 0xbf, rest @ ..] => String::from_utf8_lossy(rest).into_owned(),
        _ => String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()),
    }
}

fn decode_utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> String {
    let (pairs, _) = bytes.as_chunks::<2>();
    char::decode_utf16(pairs.iter().map(|pair| unit(*pair))).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_order_marks_choose_the_encoding() {
        let text = "name: Größe 日本 😀\n";
        let utf16 = |to: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(to).collect::<Vec<u8>>();
        for (mark, body) in [
            (&b"\xff\xfe"[..], utf16(u16::to_le_bytes)),
            (b"\xfe\xff", utf16(u16::to_be_bytes)),
            (b"\xef\xbb\xbf", text.into()),
            (b"", text.into()),
        ] {
            assert_eq!(decode([mark, &body].concat()), text, "{mark:x?}");
        }
        assert_eq!(decode(b"# caf\xe9\nkind: x".to_vec()), "# caf\u{fffd}\nkind: x");
        assert_eq!(decode(b"\xff\xfea\0\x00\xd8b\0c".to_vec()), "a\u{fffd}b", "half a pair and half a unit");
    }
}
