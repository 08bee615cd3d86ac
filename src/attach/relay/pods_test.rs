//! The words by which a relay opens an export at a pod.

use super::*;
use tokio::net::UnixListener;

const UID: &str = "58d587922bd90c3a3f1c9ae0567b9412";

/// Opens an export at a pod that greets, and returns the bytes that it got.
async fn told(export: &str, line: Option<LineNumber>) -> String {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nbd.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let opener = Opener::new(export, None).unwrap();
    let pod = PodAddress::Unix(path);
    let opening = async {
        let opened = match line {
            Some(line) => opener.open_line(&pod, line).await,
            None => opener.open(&pod).await,
        };
        assert!(opened.is_err(), "the pod goes away");
    };
    let serving = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"NBDMAGICIHAVEOPT\0\x03").await.unwrap();
        let mut bytes = Vec::new();
        while !bytes.windows(export.len()).any(|part| part == export.as_bytes()) {
            assert!(stream.read_buf(&mut bytes).await.unwrap() > 0);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    tokio::join!(opening, serving).1
}

#[tokio::test]
async fn a_line_of_an_attachment_says_its_number() {
    let line = Some(LineNumber(7));
    assert!(told(UID, line).await.contains(&format!("{UID}?line=7")));
    // A look takes nobody's place, and an open volume may have clients that know nothing of each
    // other.
    assert!(!told(UID, None).await.contains("line"));
    assert!(!told("demo", line).await.contains("line"));
}
