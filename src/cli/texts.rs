//! Commands that only print what is already known: the schema, the cases, completions, the man page.

use std::path::PathBuf;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::scenario;

use super::args::Cli;
use super::error::{Failure, Message};
use super::exit::Exit;
use super::select;
use super::terminal::Terminal;

/// `backsim schema`
pub fn schema(terminal: &mut Terminal<'_>) -> Result<Exit, Failure> {
    writeln!(terminal.out, "{:#}", scenario::schema())?;
    Ok(Exit::Good)
}

/// `backsim list`
pub fn list(paths: &[PathBuf], terminal: &mut Terminal<'_>) -> Result<Exit, Failure> {
    for loaded in select::load_all(&select::files(paths)?)? {
        for case in &loaded.cases {
            writeln!(terminal.out, "{}: {}", loaded.scenario.file, case.name)?;
        }
    }
    Ok(Exit::Good)
}

/// `backsim list --defects`
pub fn defects(terminal: &mut Terminal<'_>) -> Result<Exit, Failure> {
    for defect in crate::quirks::DEFECTS {
        writeln!(terminal.out, "{}: {}", defect.name, defect.text)?;
    }
    Ok(Exit::Good)
}

/// `backsim completions`
pub fn completions(shell: Shell, terminal: &mut Terminal<'_>) -> Result<Exit, Failure> {
    // The generator takes the stream for one that can't fail, so the text is made first.
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "backsim", &mut text);
    terminal.out.write_all(&text)?;
    Ok(Exit::Good)
}

/// `backsim man`
pub fn man(command: Option<&str>, terminal: &mut Terminal<'_>) -> Result<Exit, Failure> {
    let cli = super::interface();
    let page = match command {
        None => cli,
        Some(name) => {
            let names: Vec<&str> = cli.get_subcommands().map(clap::Command::get_name).collect();
            let Some(found) = cli.find_subcommand(name) else {
                let message = Message::mistake(format!("backsim has no command `{name}`"));
                return Err(message.expected(names.join(", ")).into());
            };
            // The page of `backsim run` is called backsim-run, as git's are.
            let name: &'static str = Box::leak(format!("backsim-{}", found.get_name()).into_boxed_str());
            found.clone().name(name)
        }
    };
    let mut text = Vec::new();
    clap_mangen::Man::new(page).render(&mut text)?;
    terminal.out.write_all(&text)?;
    Ok(Exit::Good)
}
