//! `overlay=FILE`: the base is never touched, the delta keeps what the guest wrote.

use crate::guest::{self, Guest};

#[test]
fn the_base_stays_and_the_delta_is_kept() {
    let place = tempfile::tempdir().unwrap();
    let (root, delta) = (place.path().join("root"), place.path().join("delta"));
    guest::copy_root(&root);
    let overlay = format!(",overlay={}", delta.display());
    let write = "guest-probe write /root/file 8388608 3
        mount -o remount,ro /";
    Guest::running(write).root(&root, &overlay).finish();
    assert!(guest::is_pristine_root(&root));
    let (kept, whole) = (guest::allocated(&delta), std::fs::metadata(&root).unwrap().len());
    assert!(kept >= 8 << 20 && kept < whole / 2, "the delta has {kept} bytes of {whole}");

    let verify = "guest-probe verify /root/file 8388608 3
        rm /root/file
        guest-probe write /root/other 1048576 4
        mount -o remount,ro /";
    Guest::running(verify).root(&root, &overlay).finish();
    let again = "test ! -e /root/file
        guest-probe verify /root/other 1048576 4
        mount -o remount,ro /";
    Guest::running(again).root(&root, &overlay).finish();
    Guest::running("test ! -e /root/file -a ! -e /root/other").root(&root, ",ro").finish();
    assert!(guest::is_pristine_root(&root));
}

#[test]
fn a_delta_survives_a_kill_after_a_flush() {
    let place = tempfile::tempdir().unwrap();
    let (root, delta) = (place.path().join("root"), place.path().join("delta"));
    guest::copy_root(&root);
    let overlay = format!(",overlay={}", delta.display());
    let write = "guest-probe write /root/file 4194304 3
        sync
        echo flushed
        guest-probe write /root/late 4194304 4
        while :; do guest-probe write /root/late 4194304 5; done";
    let (running, _directory) = Guest::running(write).root(&root, &overlay).start();
    running.wait_for("\nflushed\r");
    running.signal(libc::SIGKILL);
    let finished = running.wait();
    assert_eq!(finished.signal, Some(libc::SIGKILL), "{finished}");
    assert!(guest::is_pristine_root(&root));
    let verify = "guest-probe verify /root/file 4194304 3
        mount -o remount,ro /";
    Guest::running(verify).root(&root, &overlay).finish();
    assert!(guest::is_pristine_root(&root));
}
