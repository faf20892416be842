//! `nomagic`: see `nomagic --help`.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    nomagic::cli::main()
}
