//! Sizes and durations as people write them (`64K`, `0x10000`, `50us`).
//!
//! Must never guess: a text that is not wholly a number with a known suffix is refused.

use std::fmt;

/// Why a text is not a size or a duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnitError {
    /// No digits where a number should begin.
    NotANumber,
    /// Digits are followed by something that is no suffix of this quantity.
    UnknownSuffix,
    /// A duration without its unit (only `0` needs none).
    UnitMissing,
    /// The value is above 2^64 - 1 bytes or nanoseconds.
    Overflow,
}

impl fmt::Display for UnitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            UnitError::NotANumber => "is not a number",
            UnitError::UnknownSuffix => "ends in an unknown suffix",
            UnitError::UnitMissing => "has no unit",
            UnitError::Overflow => "does not fit in 64 bits",
        })
    }
}

impl std::error::Error for UnitError {}

/// Splits `text` into its leading decimal or hexadecimal number and the rest.
fn number(text: &str) -> Result<(u64, &str), UnitError> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => (hex, 16),
        None => (text, 10),
    };
    let end = digits.find(|c: char| !c.is_digit(radix)).unwrap_or(digits.len());
    if end == 0 {
        return Err(UnitError::NotANumber);
    }
    match u64::from_str_radix(&digits[..end], radix) {
        Ok(value) => Ok((value, &digits[end..])),
        Err(_) => Err(UnitError::Overflow),
    }
}

/// Reads a size in bytes: a decimal or `0x` number, then nothing, `B`, or one of `K M G T P E` (powers
/// of 1024, in either case, as qemu-img reads them).
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let (value, suffix) = number(text)?;
    let shift = match suffix {
        "" | "b" | "B" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        "p" | "P" => 50,
        "e" | "E" => 60,
        _ => return Err(UnitError::UnknownSuffix),
    };
    value.checked_mul(1 << shift).ok_or(UnitError::Overflow)
}

/// Reads a duration in nanoseconds: a decimal number and `ns`, `us`, `ms` or `s`; `0` needs no unit.
pub fn parse_duration(text: &str) -> Result<u64, UnitError> {
    let (value, suffix) = number(text)?;
    let scale = match suffix {
        "ns" => 1,
        "us" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "" if value == 0 => 1,
        "" => return Err(UnitError::UnitMissing),
        _ => return Err(UnitError::UnknownSuffix),
    };
    value.checked_mul(scale).ok_or(UnitError::Overflow)
}

/// Writes nanoseconds in the largest unit that loses nothing (`1500us`, `20s`).
pub fn format_duration(ns: u64) -> String {
    let (scale, unit) = [(1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us")]
        .into_iter()
        .find(|(scale, _)| ns != 0 && ns.is_multiple_of(*scale))
        .unwrap_or((1, "ns"));
    format!("{}{unit}", ns / scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("64K"), Ok(65536));
        assert_eq!(parse_size("0x10000"), Ok(65536));
        assert_eq!(parse_size("1m"), Ok(1 << 20));
        assert_eq!(parse_size("512"), Ok(512));
        assert_eq!(parse_size("16E"), Err(UnitError::Overflow));
        assert_eq!(parse_size("18446744073709551616"), Err(UnitError::Overflow));
        assert_eq!(parse_size("64X"), Err(UnitError::UnknownSuffix));
        assert_eq!(parse_size("-1"), Err(UnitError::NotANumber));
        assert_eq!(parse_size("0x"), Err(UnitError::NotANumber));
        assert_eq!(parse_size(""), Err(UnitError::NotANumber));
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("50us"), Ok(50_000));
        assert_eq!(parse_duration("0"), Ok(0));
        assert_eq!(parse_duration("20s"), Ok(20_000_000_000));
        assert_eq!(parse_duration("20"), Err(UnitError::UnitMissing));
        assert_eq!(parse_duration("20min"), Err(UnitError::UnknownSuffix));
        assert_eq!(parse_duration("99999999999s"), Err(UnitError::Overflow));
        assert_eq!(format_duration(1_500_000), "1500us");
        assert_eq!(format_duration(0), "0ns");
    }
}
