//! Numbers as QEMU reads them on command lines and in option lists, and as C prints them.
//!
//! QEMU's source: `util/cutils.c` and C's `strtol`. Must never be used for what a scenario says of itself:
//! those numbers are [`crate::units`]'s.

use crate::quirks::Quirks;

/// Why a text is not a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StrtoszError {
    /// Not a number with a known suffix, or something behind it.
    Invalid,
    /// Above 2^64 - 1, or below 0 where the version says so.
    Range,
}

type Size = Result<u64, StrtoszError>;

/// A number as `%#x` prints it: 0 has no prefix.
pub fn alternate_hex(value: u64) -> String {
    if value == 0 { "0".to_owned() } else { format!("{value:#x}") }
}

/// Reads a number of bytes (`qemu_strtosz`): decimal, with a fraction if it has a suffix, or hexadecimal.
pub fn strtosz(quirks: &Quirks, text: &str) -> Size {
    let text = text.trim_start_matches([' ', '\t', '\n', '\u{b}', '\u{c}', '\r']);
    if let Some(text) = text.strip_prefix('-') {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let told = quirks.strtosz_strict && is_number;
        return Err(if told { StrtoszError::Range } else { StrtoszError::Invalid });
    }
    let text = text.strip_prefix('+').unwrap_or(text);
    if let Some((digits, rest)) = split_hex(text) {
        let suffix = multiplier(rest)?;
        if quirks.strtosz_strict && !rest.is_empty() {
            return Err(StrtoszError::Invalid);
        }
        return whole(digits, 16, rest)?.checked_mul(suffix).ok_or(StrtoszError::Range);
    }
    let (digits, rest) = split_digits(text);
    let Some(fraction) = rest.strip_prefix('.') else {
        let value = whole(digits, 10, rest)?;
        return value.checked_mul(multiplier(rest)?).ok_or(StrtoszError::Range);
    };
    let (decimals, rest_of_fraction) = split_digits(fraction);
    let value = match digits {
        // Only later versions take a number that begins with its point.
        "" if quirks.strtosz_strict && !decimals.is_empty() => 0,
        digits => whole(digits, 10, rest)?,
    };
    let unit = multiplier(rest_of_fraction)?;
    if unit == 1 && decimals.bytes().any(|digit| digit != b'0') {
        return Err(StrtoszError::Invalid);
    }
    let part = u64::try_from(scaled_fraction(quirks, decimals, unit)?).map_err(|_| StrtoszError::Range)?;
    value.checked_mul(unit).and_then(|whole| whole.checked_add(part)).ok_or(StrtoszError::Range)
}

/// `0.decimals` of `unit`, rounded: QEMU keeps the fraction in 64 bits behind the point.
fn scaled_fraction(quirks: &Quirks, decimals: &str, unit: u64) -> Result<u128, StrtoszError> {
    let fraction: f64 = format!("0.{decimals}0").parse().map_err(|_| StrtoszError::Invalid)?;
    if fraction >= 1.0 {
        // So near to 1 that it rounds to it: before 10.0 the conversion overflows to nothing.
        return Ok(if quirks.strtosz_strict { u128::from(unit) } else { 0 });
    }
    let bits = (fraction * 2f64.powi(64)) as u128;
    Ok((bits * u128::from(unit) + (1 << 63)) >> 64)
}

/// Whether reading the size makes QEMU warn of a hexadecimal number with a suffix.
pub fn strtosz_warns(quirks: &Quirks, text: &str) -> bool {
    let suffixed = |(_, rest): (&str, &str)| rest.chars().next().is_some_and(|c| multiplier_of(c).is_some());
    !quirks.strtosz_strict && split_hex(text).is_some_and(suffixed)
}

/// The digits of a hexadecimal number and what is behind them; none if there is not one digit.
fn split_hex(text: &str) -> Option<(&str, &str)> {
    let hex = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"))?;
    let end = hex.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(hex.len());
    (end > 0).then(|| hex.split_at(end))
}

fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// The value of `digits`; one that is too large is only told as such if nothing is behind it.
fn whole(digits: &str, radix: u32, rest: &str) -> Size {
    if digits.is_empty() {
        return Err(StrtoszError::Invalid);
    }
    let too_large = if rest.is_empty() { StrtoszError::Range } else { StrtoszError::Invalid };
    u64::from_str_radix(digits, radix).map_err(|_| too_large)
}

fn multiplier(suffix: &str) -> Size {
    let mut letters = suffix.chars();
    match (letters.next(), letters.next()) {
        (None, _) => Ok(1),
        (Some(letter), None) => multiplier_of(letter).ok_or(StrtoszError::Invalid),
        _ => Err(StrtoszError::Invalid),
    }
}

fn multiplier_of(suffix: char) -> Option<u64> {
    let shift = match suffix.to_ascii_lowercase() {
        'b' => 0,
        'k' => 10,
        'm' => 20,
        'g' => 30,
        't' => 40,
        'p' => 50,
        'e' => 60,
        _ => return None,
    };
    Some(1 << shift)
}

/// Reads the whole of `text` as C's `strtol` with base 0 does: decimal, octal after `0`, hexadecimal after `0x`.
pub fn strtol(text: &str) -> Option<i64> {
    let text = text.trim_start_matches([' ', '\t', '\n', '\u{b}', '\u{c}', '\r']);
    let negative = text.starts_with('-');
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (digits, radix) = match split_hex(digits) {
        Some((hex, "")) => (hex, 16),
        _ if digits.len() > 1 && digits.starts_with('0') => (&digits[1..], 8),
        _ => (digits, 10),
    };
    // What the digits may not begin with once the sign is gone.
    if digits.starts_with(['+', '-']) {
        return None;
    }
    let value = u64::from_str_radix(digits, radix).ok()?;
    if negative { 0i64.checked_sub_unsigned(value) } else { i64::try_from(value).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quirks::Compat;

    const OLD: Quirks = Quirks::of(Compat::Qemu72);
    const NEW: Quirks = Quirks::of(Compat::Qemu100);

    #[test]
    fn sizes_are_read_as_qemu_reads_them() {
        for (text, value) in [
            ("1.5M", 1_572_864),
            ("0x1000", 4096),
            ("0x1e", 30),
            (" 1k", 1024),
            ("+512", 512),
            ("1b", 1),
            ("1.0", 1),
            ("1.k", 1024),
            ("010", 10),
            ("1.9999999999k", 2048),
            ("0x7fffffffffffffff", i64::MAX as u64),
        ] {
            assert_eq!((strtosz(&OLD, text), strtosz(&NEW, text)), (Ok(value), Ok(value)), "{text}");
        }
        for text in ["", "x", "1kk", "1.5", "1e3", "1.5e1k", "0x", "0x1.", ".", ".k", "1 k", "--1", "+-1", "-"] {
            let invalid = Err(StrtoszError::Invalid);
            assert_eq!((strtosz(&OLD, text), strtosz(&NEW, text)), (invalid, invalid), "{text}");
        }
        assert_eq!(strtosz(&OLD, "16E"), Err(StrtoszError::Range));
        assert_eq!(strtosz(&OLD, "99999999999999999999"), Err(StrtoszError::Range));
        assert_eq!(strtosz(&OLD, "99999999999999999999k"), Err(StrtoszError::Invalid));
    }

    #[test]
    fn versions_differ_at_the_edges() {
        assert_eq!((strtosz(&OLD, "0x1k"), strtosz(&NEW, "0x1k")), (Ok(1024), Err(StrtoszError::Invalid)));
        assert_eq!((strtosz(&OLD, ".5k"), strtosz(&NEW, ".5k")), (Err(StrtoszError::Invalid), Ok(512)));
        assert_eq!((strtosz(&OLD, "-5"), strtosz(&NEW, "-5")), (Err(StrtoszError::Invalid), Err(StrtoszError::Range)));
        let near = "0.99999999999999999999k";
        assert_eq!((strtosz(&OLD, near), strtosz(&NEW, near)), (Ok(0), Ok(1024)));
        assert!(strtosz_warns(&OLD, "0x1kk") && !strtosz_warns(&NEW, "0x1k") && !strtosz_warns(&OLD, "0xg"));
    }

    #[test]
    fn integers_have_the_bases_of_c() {
        assert_eq!(strtol("0x7f"), Some(127));
        assert_eq!(strtol("010"), Some(8));
        assert_eq!(strtol("-1"), Some(-1));
        assert_eq!(strtol("-0x1"), Some(-1));
        assert_eq!(strtol("0"), Some(0));
        for text in ["", "-", "+", "x", "0x", "08", "1k", "+-1", "0-1", "1_0"] {
            assert_eq!(strtol(text), None, "{text}");
        }
    }
}
