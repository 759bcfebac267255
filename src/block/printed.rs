//! What a process prints on its standard output, put into words only when somebody reads it.
//!
//! Most of it nobody reads: a scenario seldom shows qemu-io's reports, an explored run never. Must never depend
//! on when it is read.

/// Printed text; see the module's text.
#[derive(Default)]
pub struct Printed(Vec<Part>);

enum Part {
    Text(String),
    Later(Box<dyn FnOnce() -> String>),
}

impl Printed {
    /// Text that costs something to put together.
    pub fn later(text: impl FnOnce() -> String + 'static) -> Printed {
        Printed(vec![Part::Later(Box::new(text))])
    }

    /// Adds `more` behind it.
    pub fn append(&mut self, mut more: Printed) {
        self.0.append(&mut more.0);
    }

    /// All of it.
    pub fn into_text(self) -> String {
        let mut text = String::new();
        for part in self.0 {
            match part {
                Part::Text(part) => text.push_str(&part),
                Part::Later(part) => text.push_str(&part()),
            }
        }
        text
    }
}

impl From<String> for Printed {
    fn from(text: String) -> Printed {
        Printed(vec![Part::Text(text)])
    }
}
