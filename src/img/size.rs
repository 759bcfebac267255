//! Sizes as qemu-img reads and prints them.
//!
//! Reading is QEMU's `qemu_strtosz` in `util/cutils.c`, printing its `size_to_str`.

use super::process::{Outcome, failure};
use crate::quirks::Quirks;

/// Why a text is not a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SizeError {
    /// Not a number with a known suffix.
    Invalid,
    /// Above 2^64 - 1.
    Range,
}

/// Reads a number of bytes: decimal, with a fraction if it has a suffix, or hexadecimal.
pub(super) fn parse(text: &str) -> Result<u64, SizeError> {
    let text = text.trim_start_matches([' ', '\t', '\n', '\u{b}', '\u{c}', '\r']);
    let text = text.strip_prefix('+').unwrap_or(text);
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        let end = hex.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(hex.len());
        let value = digits(&hex[..end], 16)?;
        return value.checked_mul(multiplier(&hex[end..], 0)?).ok_or(SizeError::Range);
    }
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let whole = digits(&text[..end], 10)?;
    let Some(fraction) = text[end..].strip_prefix('.') else {
        return whole.checked_mul(multiplier(&text[end..], 0)?).ok_or(SizeError::Range);
    };
    let end = fraction.find(|c: char| !c.is_ascii_digit()).unwrap_or(fraction.len());
    let zero = fraction[..end].bytes().all(|digit| digit == b'0');
    let unit = multiplier(&fraction[end..], 0)?;
    if unit == 1 && !zero {
        return Err(SizeError::Invalid);
    }
    let part: f64 = format!("0.{}0", &fraction[..end]).parse().map_err(|_| SizeError::Invalid)?;
    let part = (part * unit as f64 + 0.5) as u64;
    whole.checked_mul(unit).and_then(|whole| whole.checked_add(part)).ok_or(SizeError::Range)
}

fn digits(text: &str, radix: u32) -> Result<u64, SizeError> {
    if text.is_empty() {
        return Err(SizeError::Invalid);
    }
    u64::from_str_radix(text, radix).map_err(|_| SizeError::Range)
}

fn multiplier(suffix: &str, default_shift: u32) -> Result<u64, SizeError> {
    let shift = match suffix {
        "" => default_shift,
        "b" | "B" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        "p" | "P" => 50,
        "e" | "E" => 60,
        _ => return Err(SizeError::Invalid),
    };
    Ok(1 << shift)
}

/// Reads the argument of an option that is a size below 2^63 (`cvtnum`).
pub(super) fn argument(quirks: &Quirks, name: &str, text: &str) -> Outcome<u64> {
    let range = || failure(format!("Invalid {name} specified. Must be between 0 and {}.", i64::MAX));
    match parse(text) {
        Ok(value) if i64::try_from(value).is_ok() => Ok(value),
        Ok(_) | Err(SizeError::Range) => Err(range()),
        Err(SizeError::Invalid) if quirks.img_new_usage => Err(failure(format!("Invalid {name} specified: '{text}'."))),
        Err(SizeError::Invalid) => Err(failure(format!(
            "Invalid {name} specified. You may use k, M, G, T, P or E suffixes for\nqemu-img: kilobytes, megabytes, \
             gigabytes, terabytes, petabytes and exabytes."
        ))),
    }
}

/// Reads the value of a parameter that is a size (`parse_option_size`).
pub(super) fn parameter(name: &str, text: &str) -> Result<u64, String> {
    parse(text).map_err(|error| match error {
        SizeError::Invalid => format!(
            "Parameter '{name}' expects a non-negative number below 2^64\nOptional suffix k, M, G, T, P or E means \
             kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively."
        ),
        SizeError::Range => format!("Value '{text}' is out of range for parameter '{name}'"),
    })
}

/// A size for people: three significant digits in the unit that leaves less than 1000 before the point.
pub(super) fn human(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit = 0;
    // The unit changes at 1000 of the smaller one, not at 1024.
    while unit + 1 < UNITS.len() && u128::from(bytes) >= 1000u128 << (10 * unit) {
        unit += 1;
    }
    let value = bytes as f64 / 2f64.powi(10 * unit as i32);
    format!("{} {}", three_digits(value), UNITS[unit])
}

/// C's `%0.3g` for 0 and for numbers from 0.9 to below 1000.
fn three_digits(value: f64) -> String {
    let places = match value {
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        v if v >= 0.9995 => 2,
        _ => 3,
    };
    let text = format!("{value:.places$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_qemu_reads_them() {
        assert_eq!(parse("1.5M"), Ok(1_572_864));
        assert_eq!(parse("0x1000"), Ok(4096));
        assert_eq!(parse(" 1k"), Ok(1024));
        assert_eq!(parse("1b"), Ok(1));
        assert_eq!(parse("1.0"), Ok(1));
        for text in ["", "x", "1kk", "1.5", "1e3", "-1", "0x", ".5M", "1 k"] {
            assert_eq!(parse(text), Err(SizeError::Invalid), "{text}");
        }
        assert_eq!(parse("16E"), Err(SizeError::Range));
        assert_eq!(parse("99999999999999999999"), Err(SizeError::Range));
    }

    #[test]
    fn sizes_are_printed_as_qemu_prints_them() {
        for (bytes, text) in [
            (0, "0 B"),
            (512, "512 B"),
            (999 << 10, "999 KiB"),
            (1000 << 10, "0.977 MiB"),
            (1023 << 10, "0.999 MiB"),
            (1500 << 20, "1.46 GiB"),
            (64 << 20, "64 MiB"),
            (1_180_160, "1.13 MiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }
}
