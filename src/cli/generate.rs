//! `generate`: made-up scenarios, to standard output or into files.

use std::fs::{self, OpenOptions};
use std::io::Write;

use crate::conform::generate::generate as make_up;

use super::args::GenerateArgs;
use super::error::{Failure, Message};
use super::exit::Exit;
use super::terminal::Terminal;

/// Makes up scenarios.
pub fn generate(args: &GenerateArgs, terminal: &mut Terminal<'_>) -> Result<Exit, Failure> {
    if args.count == 0 {
        return Ok(Exit::Nothing);
    }
    let seeds = args.seed..=args.seed.saturating_add(args.count - 1);
    let Some(directory) = &args.out else {
        if args.count > 1 {
            return Err(Message::mistake(format!("{} scenarios do not fit into one output", args.count))
                .at("--count")
                .expected("a directory for them")
                .hint("add `--out DIR`")
                .into());
        }
        terminal.out.write_all(make_up(args.seed, args.family).text.as_bytes())?;
        return Ok(Exit::Good);
    };
    fs::create_dir_all(directory).map_err(|error| Failure::file(directory, "create this directory", &error))?;
    for seed in seeds {
        let scenario = make_up(seed, args.family);
        let path = directory.join(format!("{}.yaml", scenario.name));
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|error| Failure::file(&path, "create this file", &error))?;
        file.write_all(scenario.text.as_bytes()).map_err(|error| Failure::file(&path, "write this file", &error))?;
        writeln!(terminal.out, "{}", path.display())?;
    }
    Ok(Exit::Good)
}
