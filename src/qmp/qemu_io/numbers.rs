//! Numbers as qemu-io reads and prints them.
//!
//! Reading: decimal with a fraction, or hex, and one of the suffixes b k M G T P E
//! (`util/cutils.c`). Printing: the largest unit with a value of at least 1 (`cvtstr` in `qemu-io-cmds.c`).

/// Why a number can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NumberError {
    /// Not a number, or something behind it.
    Malformed,
    /// Beyond 64 bits.
    TooLarge,
}

/// Reads a size in bytes.
pub fn parse_size(text: &str) -> Result<u64, NumberError> {
    let (digits, shift) = split_suffix(text);
    let hex = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X"));
    if let Some(hex) = hex {
        if hex.is_empty() || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(NumberError::Malformed);
        }
        let value = u64::from_str_radix(hex, 16).map_err(|_| NumberError::TooLarge)?;
        return shifted(value, shift);
    }
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !all_digits(whole) || !all_digits(fraction) {
        return Err(NumberError::Malformed);
    }
    let value: u64 = whole.parse().map_err(|_| NumberError::TooLarge)?;
    let base = shifted(value, shift)?;
    if fraction.is_empty() {
        return Ok(base);
    }
    let part: f64 = format!("0.{fraction}").parse().map_err(|_| NumberError::Malformed)?;
    if part != 0.0 && shift == 0 {
        return Err(NumberError::Malformed);
    }
    base.checked_add((part * 2f64.powi(shift as i32)) as u64).ok_or(NumberError::TooLarge)
}

fn split_suffix(text: &str) -> (&str, u32) {
    let is_hex = text.len() > 2 && (text.starts_with("0x") || text.starts_with("0X"));
    let Some(last) = text.chars().last() else { return (text, 0) };
    let shift = match last.to_ascii_lowercase() {
        // In a hex number these two are digits.
        'b' | 'e' if is_hex => return (text, 0),
        'b' => 0,
        'k' => 10,
        'm' => 20,
        'g' => 30,
        't' => 40,
        'p' => 50,
        'e' => 60,
        _ => return (text, 0),
    };
    (&text[..text.len() - last.len_utf8()], shift)
}

fn shifted(value: u64, shift: u32) -> Result<u64, NumberError> {
    if value != 0 && value.leading_zeros() < shift {
        return Err(NumberError::TooLarge);
    }
    // QEMU keeps sizes within a signed 64-bit integer.
    let value = value.checked_shl(shift).unwrap_or(0);
    if i64::try_from(value).is_ok() { Ok(value) } else { Err(NumberError::TooLarge) }
}

/// A size for people: `64 KiB`, `1.500 KiB`, `32 bytes`.
pub fn human(bytes: u64) -> String {
    const UNITS: [(u32, &str); 6] = [(60, "EiB"), (50, "PiB"), (40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    for (shift, unit) in UNITS {
        if bytes >> shift >= 1 {
            let value = bytes as f64 / 2f64.powi(shift as i32);
            let text = format!("{value:.3}");
            return format!("{} {unit}", text.strip_suffix(".000").unwrap_or(&text));
        }
    }
    format!("{bytes} bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_with_suffixes_and_fractions() {
        assert_eq!(parse_size("0x10000"), Ok(65536));
        assert_eq!(parse_size("1.5k"), Ok(1536));
        assert_eq!(parse_size("64K"), Ok(65536));
        assert_eq!(parse_size("3M"), Ok(3 << 20));
        assert_eq!(parse_size("12x"), Err(NumberError::Malformed));
        assert_eq!(parse_size("99999999999999999999"), Err(NumberError::TooLarge));
    }

    #[test]
    fn sizes_print_as_qemu_io_prints_them() {
        assert_eq!(human(65536), "64 KiB");
        assert_eq!(human(1536), "1.500 KiB");
        assert_eq!(human(512), "512 bytes");
    }
}
