//! `nomagic`: see `nomagic --help`.

fn main() -> std::process::ExitCode {
    nomagic::cli::main()
}
