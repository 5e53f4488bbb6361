//! `kill -9` in the middle of traffic: every statement that a caller has seen is in the log, and the log goes on.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use assay_receipt::{AnyStatement, Bytes32, Domain, Member};
use assay_verify::check_sequence;
use common::*;

const FOLDER: &str = "ASSAY_TEST_WORKER_FOLDER";

/// The worker process that the test below starts and kills.
#[test]
#[ignore = "no test by itself: `no_statement_is_lost` starts it as a process of its own"]
fn child() {
    let folder = std::env::var_os(FOLDER).expect("started by no_statement_is_lost");
    let mut config = assay_worker::Config::new(&folder);
    config.threads = 1;
    config.models.push(model(&Path::new(&folder).join("tiny-7.assay"), 2, 3));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (ready, _) = tokio::sync::oneshot::channel();
    runtime.block_on(Box::pin(assay_worker::run(config, ready, std::future::pending()))).unwrap();
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill(); // SIGKILL
        let _ = self.0.wait();
    }
}

async fn spawn(folder: &Path) -> (Killed, Member) {
    // A killed worker leaves its description behind; wait for the new one.
    let description = folder.join("worker.json");
    let _ = std::fs::remove_file(&description);
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--nocapture"])
        .env(FOLDER, folder)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let child = Killed(child);
    for _ in 0..1200 {
        if let Ok(bytes) = std::fs::read(&description) {
            return (child, serde_json::from_slice(&bytes).unwrap());
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("the worker did not start");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_statement_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    artifact(&assay_worker::Config::new(folder.path()), 7);
    let seen: Arc<Mutex<HashMap<Bytes32, AnyStatement>>> = Arc::default();
    let mut worker = None;
    for round in 0..4_u64 {
        let (child, member) = spawn(folder.path()).await;
        assert_eq!(*worker.get_or_insert(member.worker), member.worker, "the identity is kept");
        let model = member.models[0].model;
        let mut tasks = Vec::new();
        for lane in 0..4_u64 {
            let (url, seen) = (member.url.clone(), seen.clone());
            tasks.push(tokio::spawn(async move {
                // Refusals and answers in turn, until the worker is gone.
                for number in 0.. {
                    let tokens = if number % 3 == 2 { 0 } else { 10 + (number % 5) as u32 };
                    let mut request = endless(model, tokens);
                    request.sampling.seed = lane;
                    let call = call(request);
                    let Ok(answer) = tokio::spawn({
                        let (url, call) = (url.clone(), call.clone());
                        async move { generate(&url, &call).await }
                    })
                    .await
                    else {
                        return; // the connection broke
                    };
                    let statement = match answer {
                        Err(refusal) => AnyStatement::Failure(refusal.failure()),
                        Ok(Answer { end: End::Receipt(receipt, _), .. }) => AnyStatement::Receipt(*receipt),
                        Ok(Answer { end: End::Failure(failure), .. }) => AnyStatement::Failure(*failure),
                        Ok(Answer { end: End::Broken, .. }) => return,
                    };
                    seen.lock().unwrap().insert(call.nonce, statement);
                }
            }));
        }
        let goal = seen.lock().unwrap().len() + 12;
        for _ in 0..2400 {
            if seen.lock().unwrap().len() >= goal {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5 + round)).await;
        }
        drop(child);
        for task in tasks {
            task.await.unwrap();
        }
    }
    let seen = seen.lock().unwrap();
    assert!(seen.len() >= 48, "only {} statements", seen.len());
    let logged = assay_worker::statements(folder.path(), 0, usize::MAX).unwrap();
    assert!(logged.len() >= seen.len());
    for statement in seen.values() {
        let sequence = usize::try_from(statement.sequence()).unwrap();
        assert_eq!(logged.get(sequence), Some(statement));
    }
    let reports = check_sequence(&Domain::default(), &logged);
    assert_eq!(reports.len(), 1);
    assert_eq!(reports[0].statements, logged.len());
    assert!(reports[0].forks.is_empty() && reports[0].broken.is_empty() && reports[0].gaps.is_empty());
}
