//! Commands that need no shell: `[cd DIR &&] [NAME=VALUE ...] WORD ...`, quoted as a shell would.
//!
//! An image may have no shell, and the gateway's commands are of this form. Pure. Invariant: what is understood here means
//! the same to a POSIX shell; anything else is refused, never guessed.

/// A command that needs no shell.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Simple {
    /// Where it runs, if it says.
    pub directory: Option<String>,
    /// Variables for it.
    pub variables: Vec<(String, String)>,
    /// Program and arguments; never empty.
    pub words: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// A word, and how many characters of it at its start were not quoted.
    Word {
        text: String,
        plain: usize,
    },
    And,
}

/// Reads a command; nothing when it needs a shell.
#[must_use]
pub fn parse(text: &str) -> Option<Simple> {
    let mut tokens = tokens(text)?;
    let mut simple = Simple::default();
    take_variables(&mut tokens, &mut simple.variables);
    if let [Token::Word { text: cd, plain: 2 }, Token::Word { text, .. }, Token::And, ..] =
        tokens.as_slice()
        && cd == "cd"
        && !text.starts_with('-')
    {
        // Variables before `cd` are its own.
        simple.variables.clear();
        simple.directory = Some(text.clone());
        tokens.drain(..3);
        take_variables(&mut tokens, &mut simple.variables);
    }
    for token in tokens {
        match token {
            Token::Word { text, .. } => simple.words.push(text),
            Token::And => return None,
        }
    }
    let program = simple.words.first()?;
    // What a shell would do itself.
    let builtin = BUILTINS.contains(&program.as_str());
    (!builtin && !program.is_empty()).then_some(simple)
}

const BUILTINS: [&str; 29] = [
    ".", ":", "alias", "bg", "break", "case", "cd", "command", "continue", "eval", "exec", "exit",
    "export", "fg", "for", "if", "jobs", "read", "readonly", "return", "set", "shift", "source",
    "trap", "ulimit", "umask", "unset", "until", "while",
];

fn take_variables(tokens: &mut Vec<Token>, variables: &mut Vec<(String, String)>) {
    let assignment = |token: &Token| {
        let Token::Word { text, plain } = token else { return None };
        let (name, value) = text.split_once('=')?;
        let mut letters = name.bytes();
        let first = letters.next().is_some_and(|c| c.is_ascii_alphabetic() || c == b'_');
        let rest = letters.all(|c| c.is_ascii_alphanumeric() || c == b'_');
        // A quoted name is no name to a shell.
        (first && rest && *plain > name.len()).then(|| (name.to_owned(), value.to_owned()))
    };
    let count = tokens.iter().map_while(assignment).map(|pair| variables.push(pair)).count();
    tokens.drain(..count);
}

fn tokens(text: &str) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| *c == ' ' || *c == '\t').is_some() {}
        match chars.peek() {
            None => return Some(tokens),
            Some('&') => {
                chars.next();
                chars.next_if_eq(&'&')?;
                tokens.push(Token::And);
            }
            Some(_) => tokens.push(word(&mut chars)?),
        }
    }
}

fn word(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<Token> {
    let mut text = String::new();
    let mut plain = None;
    while let Some(c) = chars.next_if(|c| !matches!(c, ' ' | '\t' | '&')) {
        match c {
            '\'' => {
                plain.get_or_insert(text.len());
                loop {
                    match chars.next()? {
                        '\'' => break,
                        c => text.push(c),
                    }
                }
            }
            '"' => {
                plain.get_or_insert(text.len());
                loop {
                    match chars.next()? {
                        '"' => break,
                        '\\' => match chars.next()? {
                            c @ ('"' | '\\' | '$' | '`') => text.push(c),
                            '\n' => {}
                            c => text.extend(['\\', c]),
                        },
                        '$' | '`' => return None,
                        c => text.push(c),
                    }
                }
            }
            '\\' => {
                plain.get_or_insert(text.len());
                match chars.next()? {
                    '\n' => {}
                    c => text.push(c),
                }
            }
            // Whatever a shell would expand, redirect or end a command with.
            '|' | ';' | '<' | '>' | '(' | ')' | '$' | '`' | '*' | '?' | '[' | ']' | '{' | '}'
            | '!' | '\n' | '\r' => return None,
            '#' | '~' if text.is_empty() && plain.is_none() => return None,
            // After an assignment's `=` or a colon a tilde is a home.
            '~' => return None,
            c => text.push(c),
        }
    }
    let plain = plain.unwrap_or(text.len());
    Some(Token::Word { text, plain })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, directory: Option<&str>, variables: &[(&str, &str)], words: &[&str]) {
        let simple = parse(text).unwrap_or_else(|| panic!("{text} is not understood"));
        assert_eq!(simple.directory.as_deref(), directory, "{text}");
        let found: Vec<(&str, &str)> =
            simple.variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(found, variables, "{text}");
        assert_eq!(simple.words, words, "{text}");
    }

    #[test]
    fn commands_of_the_gateway_are_understood() {
        check("echo smoke-ok", None, &[], &["echo", "smoke-ok"]);
        check("A=1 B='two words' env", None, &[("A", "1"), ("B", "two words")], &["env"]);
        check("cd '/a b' && C=\"x\\\"y\" ls -l", Some("/a b"), &[("C", "x\"y")], &["ls", "-l"]);
        check("printf '%s' 'it'\\''s'", None, &[], &["printf", "%s", "it's"]);
        check("'A=1' x", None, &[], &["A=1", "x"]);
        check("x ''", None, &[], &["x", ""]);
        check("x A=1 cd", None, &[], &["x", "A=1", "cd"]);
    }

    #[test]
    fn what_needs_a_shell_is_refused() {
        for text in [
            "",
            "  ",
            "a | b",
            "a; b",
            "a && b",
            "a &",
            "a > f",
            "echo $A",
            "echo \"$A\"",
            "echo `a`",
            "echo *",
            "echo ~",
            "(a)",
            "a 'b",
            "a \\",
            "exit 3",
            "cd /x",
            "A=1",
            "cd - && ls",
            "# x",
            "A=~ x",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// The oracle is a shell: what is understood means the same to it.
        #[test]
        fn a_shell_agrees(text in r#"[ab =/'"\\$&|;~#*\n]{0,12}"#) {
            if let Some(simple) = parse(&text) {
                let script = format!("f() {{ printf '%s\\n' \"$#\" \"$@\"; }}\n\\f {text}");
                let plain = simple.directory.is_none() && simple.variables.is_empty();
                if plain {
                    let output = Command::new("/bin/sh").args(["-c", &script]).output().unwrap();
                    let mut expected = format!("{}\n", simple.words.len());
                    for word in &simple.words {
                        expected.push_str(word);
                        expected.push('\n');
                    }
                    prop_assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{:?}", text);
                }
            }
        }

        #[test]
        fn quoting_any_words_gives_them_back(words in proptest::collection::vec("[^\u{0}]{0,12}", 1..5)) {
            let quote = |word: &String| format!("'{}'", word.replace('\'', "'\\''"));
            let text = words.iter().map(quote).collect::<Vec<_>>().join(" ");
            let understood = !words[0].is_empty() && !BUILTINS.contains(&words[0].as_str());
            prop_assert_eq!(parse(&text).map(|simple| simple.words), understood.then_some(words));
        }
    }
}
