//! `nomagic completions`: scripts that let a shell complete commands and arguments.

use std::io::{self, Write};

use anyhow::Result;
use clap::CommandFactory;
use clap_complete::{Shell, generate};

/// `nomagic completions`
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nomagic completions bash > /etc/bash_completion.d/nomagic
  nomagic completions zsh > /usr/local/share/zsh/site-functions/_nomagic
  nomagic completions fish > ~/.config/fish/completions/nomagic.fish")]
pub(super) struct CompletionsArgs {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

/// Writes the script to standard output.
pub(super) fn run(args: &CompletionsArgs) -> Result<u8> {
    super::filter_args::until_closed(write(args.shell, &mut io::stdout().lock()).map(|()| 0))
}

fn write(shell: Shell, out: &mut impl Write) -> Result<()> {
    // The library panics if it cannot write.
    let mut script = Vec::new();
    generate(shell, &mut super::Cli::command(), "nomagic", &mut script);
    Ok(out.write_all(&script)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_know_commands_and_arguments() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            write(shell, &mut script).unwrap();
            let script = String::from_utf8(script).unwrap();
            for word in ["capture", "trace", "snap-len", "service"] {
                assert!(script.contains(word), "{shell}: {word}");
            }
        }
    }
}
