//! placeholder
#[derive(clap::Args)]
pub(crate) struct Args {}
pub(crate) fn run(_: Args, _: bool) -> crate::error::Result<()> {
    Ok(())
}
