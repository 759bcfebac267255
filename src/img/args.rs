//! The command line, read as getopt_long reads it: options and file names in any order, short options in
//! clusters, long options by any unique beginning.
//!
//! Must never guess: what is not in the subcommand's table is an error.

use super::process::{Exit, Outcome, failure};
use crate::quirks::Quirks;

/// An option of a subcommand. Where it has two long forms or two letters, it is two of these with one key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opt {
    /// What the program calls it.
    pub(super) key: &'static str,
    /// Its long form.
    long: Form<&'static str>,
    /// Its short form.
    letter: Form<char>,
    /// Whether it has an argument.
    pub(super) takes: bool,
}

/// One way to write an option, and which version knows it.
#[derive(Clone, Copy, Debug)]
enum Form<T> {
    /// None does.
    None,
    /// Both do.
    Always(T),
    /// Only 10.0.2, as Debian packages it.
    New(T),
}

impl<T: Copy> Form<T> {
    fn of(self, quirks: &Quirks) -> Option<T> {
        match self {
            Form::Always(form) => Some(form),
            Form::New(form) if quirks.img_new_usage => Some(form),
            _ => None,
        }
    }
}

impl Opt {
    /// The same option with another long form, of the later version.
    pub(super) const fn called(self, name: &'static str) -> Opt {
        Opt { long: Form::New(name), ..self }
    }
}

/// An option with both forms.
pub(super) const fn opt(key: &'static str, letter: char, takes: bool) -> Opt {
    Opt { key, long: Form::Always(key), letter: Form::Always(letter), takes }
}

/// An option whose long form came later.
pub(super) const fn short(key: &'static str, letter: char, takes: bool) -> Opt {
    Opt { key, long: Form::New(key), letter: Form::Always(letter), takes }
}

/// An option without a short form.
pub(super) const fn long(key: &'static str, takes: bool) -> Opt {
    Opt { key, long: Form::Always(key), letter: Form::None, takes }
}

/// An option without a long form.
pub(super) const fn letter(key: &'static str, letter: char, takes: bool) -> Opt {
    Opt { key, long: Form::None, letter: Form::Always(letter), takes }
}

/// An option that came later.
pub(super) const fn newer(key: &'static str, letter: char, takes: bool) -> Opt {
    Opt { key, long: Form::New(key), letter: Form::New(letter), takes }
}

/// A short form that came later, of an option that has a long one.
pub(super) const fn newer_letter(key: &'static str, letter: char, takes: bool) -> Opt {
    Opt { key, long: Form::None, letter: Form::New(letter), takes }
}

/// A second long form that came later.
pub(super) const fn newer_name(key: &'static str, name: &'static str, takes: bool) -> Opt {
    Opt { key, long: Form::New(name), letter: Form::None, takes }
}

/// What the command line says.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    /// Options in the order given, by key.
    pub(super) options: Vec<(&'static str, String)>,
    /// What is no option.
    pub(super) rest: Vec<String>,
}

impl Parsed {
    /// Whether an option was given.
    pub(super) fn has(&self, key: &str) -> bool {
        self.options.iter().any(|(k, _)| *k == key)
    }

    /// The argument of the last option of that name.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.options.iter().rev().find(|(k, _)| *k == key).map(|(_, value)| value.as_str())
    }

    /// The arguments of all options of that name.
    pub(super) fn all(&self, key: &str) -> impl Iterator<Item = &str> {
        self.options.iter().filter(move |(k, _)| *k == key).map(|(_, value)| value.as_str())
    }
}

/// One subcommand's reader.
pub(super) struct Reader<'a> {
    pub(super) quirks: &'a Quirks,
    pub(super) subcommand: &'a str,
    pub(super) table: &'static [Opt],
}

impl Reader<'_> {
    /// Reads what follows the subcommand.
    pub(super) fn read(&self, args: &[String]) -> Outcome<Parsed> {
        let mut parsed = Parsed::default();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            if arg == "--" {
                parsed.rest.extend(args.cloned());
                break;
            }
            if let Some(name) = arg.strip_prefix("--") {
                self.long(arg, name, &mut args, &mut parsed)?;
            } else if let Some(cluster) = arg.strip_prefix('-').filter(|cluster| !cluster.is_empty()) {
                self.cluster(arg, cluster, &mut args, &mut parsed)?;
            } else {
                parsed.rest.push(arg.clone());
            }
        }
        Ok(parsed)
    }

    fn long<'s>(
        &self,
        arg: &str,
        text: &str,
        args: &mut impl Iterator<Item = &'s String>,
        parsed: &mut Parsed,
    ) -> Outcome<()> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        let named = |opt: &'static Opt| Some((opt.long.of(self.quirks)?, opt));
        let known: Vec<(&'static str, &'static Opt)> = self.table.iter().filter_map(named).collect();
        let exact = known.iter().find(|(long, _)| *long == name);
        let mut begun = known.iter().filter(|(long, _)| long.starts_with(name));
        let found = exact.or_else(|| begun.next().filter(|_| begun.next().is_none()));
        let (long, opt) = match found {
            Some(found) => *found,
            None => return Err(self.no_such_long(arg, name, &known)),
        };
        let value = match (opt.takes, value) {
            (true, Some(value)) => value,
            (true, None) => args.next().ok_or_else(|| self.no_argument(arg, &format!("'--{long}'"), false))?.clone(),
            (false, None) => String::new(),
            (false, Some(_)) if self.quirks.img_new_usage => {
                return Err(self.getopt(&format!("option '--{long}' doesn't allow an argument")));
            }
            (false, Some(_)) => return Err(self.usage(&format!("unrecognized option '{arg}'"))),
        };
        parsed.options.push((opt.key, value));
        Ok(())
    }

    fn cluster<'s>(
        &self,
        arg: &str,
        cluster: &str,
        args: &mut impl Iterator<Item = &'s String>,
        parsed: &mut Parsed,
    ) -> Outcome<()> {
        for (at, letter) in cluster.char_indices() {
            let found = self.table.iter().find(|opt| opt.letter.of(self.quirks) == Some(letter));
            let opt = found.ok_or_else(|| self.no_such_letter(arg, letter))?;
            if !opt.takes {
                parsed.options.push((opt.key, String::new()));
                continue;
            }
            let attached = &cluster[at + letter.len_utf8()..];
            let value = match attached {
                "" => args.next().ok_or_else(|| self.no_argument(arg, &format!("'{letter}'"), true))?.clone(),
                attached => attached.to_owned(),
            };
            parsed.options.push((opt.key, value));
            break;
        }
        Ok(())
    }

    /// The end by a long option that is not known, or that begins several.
    fn no_such_long(&self, arg: &str, name: &str, known: &[(&str, &Opt)]) -> Exit {
        if !self.quirks.img_new_usage {
            return self.usage(&format!("unrecognized option '{arg}'"));
        }
        let begun: Vec<String> =
            known.iter().filter(|(long, _)| long.starts_with(name)).map(|(long, _)| format!("'--{long}'")).collect();
        match begun.len() {
            0 => self.getopt(&format!("unrecognized option '--{name}'")),
            _ => self.getopt(&format!("option '{arg}' is ambiguous; possibilities: {}", begun.join(" "))),
        }
    }

    fn no_such_letter(&self, arg: &str, letter: char) -> Exit {
        match self.quirks.img_new_usage {
            true => self.getopt(&format!("invalid option -- '{letter}'")),
            false => self.usage(&format!("unrecognized option '{arg}'")),
        }
    }

    /// The end by an option whose argument is missing; getopt puts the name of a letter last.
    fn no_argument(&self, arg: &str, option: &str, is_letter: bool) -> Exit {
        match (self.quirks.img_new_usage, is_letter) {
            (false, _) => self.usage(&format!("missing argument for option '{arg}'")),
            (true, true) => self.getopt(&format!("option requires an argument -- {option}")),
            (true, false) => self.getopt(&format!("option {option} requires an argument")),
        }
    }

    /// As C's getopt tells it, in the name of the subcommand.
    fn getopt(&self, message: &str) -> Exit {
        Exit { spoken_by: Some(self.subcommand.to_owned()), ..self.usage(message) }
    }

    /// Ends the process because of its command line (`error_exit`).
    pub(super) fn usage(&self, message: &str) -> Exit {
        usage(self.quirks, Some(self.subcommand), message)
    }

    /// The only file name.
    pub(super) fn one_file<'p>(&self, parsed: &'p Parsed) -> Outcome<&'p str> {
        match parsed.rest.as_slice() {
            [file] => Ok(file),
            _ => Err(self.usage("Expecting one image file name")),
        }
    }

    /// `--output`: whether it is JSON.
    pub(super) fn json(&self, parsed: &Parsed) -> Outcome<bool> {
        match parsed.get("output") {
            Some("json") => Ok(true),
            Some("human") | None => Ok(false),
            Some(other) if self.quirks.img_new_usage => {
                Err(self.usage(&format!("--output expects 'human' or 'json' not '{other}'")))
            }
            Some(_) => Err(failure("--output must be used with human or json as argument.")),
        }
    }
}

/// Ends the process with a message and a pointer to the help.
pub(super) fn usage(quirks: &Quirks, subcommand: Option<&str>, message: &str) -> Exit {
    let hint = match subcommand {
        _ if !quirks.img_new_usage => "Try 'qemu-img --help' for more information".to_owned(),
        Some(subcommand) => format!("Try 'qemu-img {subcommand} --help' for more info"),
        None => "Try 'qemu-img --help' for more info".to_owned(),
    };
    failure(format!("{message}\n{hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quirks::Compat;

    const TABLE: &[Opt] = &[short("format", 'f', true), long("output", true), opt("force-share", 'U', false)];

    fn read(compat: Compat, args: &[&str]) -> Result<(String, Vec<String>), String> {
        let quirks = crate::quirks::Quirks::of(compat);
        let reader = Reader { quirks: &quirks, subcommand: "info", table: TABLE };
        let args: Vec<String> = args.iter().map(|arg| arg.to_string()).collect();
        let parsed = reader.read(&args).map_err(|exit| exit.message)?;
        let options: Vec<String> = parsed.options.iter().map(|(k, v)| format!("{k}={v}")).collect();
        Ok((options.join(" "), parsed.rest))
    }

    #[test]
    fn options_stand_anywhere_and_in_clusters() {
        let (options, rest) = read(Compat::Qemu72, &["a", "-Ufraw", "b", "--out", "json", "--", "-f"]).unwrap();
        assert_eq!(options, "force-share= format=raw output=json");
        assert_eq!(rest, ["a", "b", "-f"]);
    }

    #[test]
    fn what_is_unknown_is_refused_in_the_versions_own_words() {
        let old = read(Compat::Qemu72, &["--format=raw"]).unwrap_err();
        assert_eq!(old, "unrecognized option '--format=raw'\nTry 'qemu-img --help' for more information");
        assert_eq!(read(Compat::Qemu100, &["--format=raw"]).unwrap().0, "format=raw");
        let new = read(Compat::Qemu100, &["-f"]).unwrap_err();
        assert_eq!(new, "option requires an argument -- 'f'\nTry 'qemu-img info --help' for more info");
        for args in [&["-x"][..], &["--fo"], &["--output"], &["-Ux"], &["--force-share=on"]] {
            assert!(read(Compat::Qemu72, args).is_err() || args == ["--fo"], "{args:?}");
        }
    }
}
