//! Sizes as qemu-img reads and prints them.
//!
//! Reading is [`crate::cutils`]'s; here are the errors about it, and QEMU's `size_to_str`.

use super::process::{Outcome, failure};
use crate::cutils::{StrtoszError, strtosz};
use crate::quirks::Quirks;

/// Reads the argument of an option that is a size below 2^63 (`cvtnum`).
pub(super) fn argument(quirks: &Quirks, name: &str, text: &str) -> Outcome<u64> {
    let range = || failure(format!("Invalid {name} specified. Must be between 0 and {}.", i64::MAX));
    match strtosz(quirks, text) {
        Ok(value) if i64::try_from(value).is_ok() => Ok(value),
        Ok(_) | Err(StrtoszError::Range) => Err(range()),
        Err(StrtoszError::Invalid) if quirks.img_new_usage => {
            Err(failure(format!("Invalid {name} specified: '{text}'.")))
        }
        Err(StrtoszError::Invalid) => Err(failure(format!(
            "Invalid {name} specified. You may use k, M, G, T, P or E suffixes for\nqemu-img: kilobytes, megabytes, \
             gigabytes, terabytes, petabytes and exabytes."
        ))),
    }
}

/// Reads the value of a parameter that is a size (`parse_option_size`).
pub(super) fn parameter(quirks: &Quirks, name: &str, text: &str) -> Result<u64, String> {
    strtosz(quirks, text).map_err(|error| match error {
        StrtoszError::Invalid => format!(
            "Parameter '{name}' expects a non-negative number below 2^64\nOptional suffix k, M, G, T, P or E means \
             kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively."
        ),
        StrtoszError::Range => format!("Value '{text}' is out of range for parameter '{name}'"),
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
