//! Colours for text that people read. Must never carry meaning alone: without colour nothing is lost.

/// Paints text, or leaves it alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    colour: bool,
}

impl Style {
    /// Paints if `colour` is true.
    pub fn coloured(colour: bool) -> Style {
        Style { colour }
    }

    /// Text that stands for something wrong or taken away.
    pub fn red(self, text: &str) -> String {
        self.paint("31", text)
    }

    /// Text that stands for something right or added.
    pub fn green(self, text: &str) -> String {
        self.paint("32", text)
    }

    /// Text that needs a look.
    pub fn yellow(self, text: &str) -> String {
        self.paint("33", text)
    }

    /// Text that says where something is.
    pub fn cyan(self, text: &str) -> String {
        self.paint("36", text)
    }

    /// A heading.
    pub fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}
