//! `assay bench`: measurements that print a table, with the peer beside us in the same run where there is one.

mod verification;

use clap::Subcommand;

use crate::error::Result;

#[derive(Subcommand)]
pub(crate) enum BenchCommand {
    /// What each verification level costs for the same requests
    Verification(verification::Args),
}

pub(crate) async fn run(command: BenchCommand, json: bool) -> Result<()> {
    match command {
        BenchCommand::Verification(args) => verification::run(&args, json),
    }
}
