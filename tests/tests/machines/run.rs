//! One run of an image: what the process finds, how its end is told, what is left.

use std::fs;

use openshell_tests::image::Registry;

use crate::rig::{Home, last_line};

#[test]
fn an_image_runs_its_own_command_and_leaves_nothing() {
    let home = Home::new();
    let image = home.shell_image();
    let result = home.path("result.json");
    let result = result.to_str().unwrap();
    let finished = home.run(["--result", result, &image]).finish().expect_code(3);
    assert_eq!(last_line(&finished), "image says image");
    assert_eq!(finished.stderr.lines().count(), 0, "{finished}");
    let told: serde_json::Value = serde_json::from_slice(&fs::read(result).unwrap()).unwrap();
    assert_eq!((told["source"].as_str(), told["code"].as_u64()), (Some("guest"), Some(3)));
    assert_eq!(home.left(), Vec::<String>::new());
}

#[test]
fn flags_change_what_the_image_says() {
    let home = Home::new();
    let image = home.shell_image();
    fs::write(home.path("vars"), "# of a file\nA=file\nB=file\n").unwrap();
    let vars = home.path("vars");
    let script = "echo $(id -u):$(id -g) $(pwd) $FROM $A $B $C $(hostname) args:$0-$1; kill -9 $$";
    let finished = home
        .run(["-e", "A=flag", "-e", "C", "--env-file", vars.to_str().unwrap()])
        .args(["-w", "/bin", "-u", "7:8", "--entrypoint", "/bin/sh", "--rm", "-n", "work_1"])
        .args([image.as_str(), "--", "-c", script, "zero", "one"])
        .env("C", "taken over")
        .finish()
        .expect_code(128 + 9);
    assert_eq!(last_line(&finished), "7:8 /bin image flag file taken over work-1 args:zero-one");
}

#[test]
fn a_program_without_a_shell_and_one_that_there_is_not() {
    let home = Home::new();
    let tree = home.scratch();
    let finished = home.run([tree.as_str(), "/probe", "abort"]).finish();
    finished.expect_code(128 + 6);
    let finished = home.run([tree.as_str(), "--", "/none"]).finish().expect_code(127);
    assert!(finished.text().contains("/none"), "{finished}");
}

#[test]
fn what_cannot_run_is_told_before_anything_boots() {
    let home = Home::new();
    let image = home.shell_image();
    let scratch = home.scratch();
    for (words, want) in [
        (vec![scratch.as_str()], "the image does not say what to run in it"),
        (vec!["oci:/nowhere", "--", "x"], "there is no image \"oci:/nowhere\" to run"),
        (vec!["-e", "OPENSHELL_X=1", &image], "names that begin with OPENSHELL_"),
        (vec!["-n", "../x", &image], "\"../x\" cannot be the name of a machine"),
        (vec!["--stop-signal", "NONE", &image], "\"NONE\" is no signal"),
        (vec!["-w", "rel", &image], "\"rel\" cannot be the directory"),
        (vec!["--cpus", "99", &image], "99"),
        (vec!["--pull", "sometimes", &image], "invalid value 'sometimes'"),
        (vec!["--disk-size", "8M", &image], "a machine's disk has 32M to 15T"),
        (vec!["-d"], "required arguments were not provided"),
    ] {
        let finished = home.run(&words).finish().expect_code(125);
        assert!(finished.stderr.contains(want), "{words:?}: {finished}");
        assert!(finished.stderr.contains("fix: "), "{words:?}: {finished}");
        assert_eq!(home.left(), Vec::<String>::new(), "{words:?}");
    }
    let finished = home.run([&image]).env("OPENSHELL_VMM_TOOLS", "/none").finish().expect_code(125);
    assert!(finished.stderr.contains("there is no tools disk; looked for /none"), "{finished}");
    let finished =
        home.run([&image]).env("OPENSHELL_VMM_ROOTFS", "/none").finish().expect_code(125);
    assert!(finished.stderr.contains("there is no program openshell-rootfs"), "{finished}");
}

#[test]
fn an_image_of_a_registry_is_pulled_once_and_then_needs_no_other_program() {
    let home = Home::new();
    home.shell_image();
    let registry = Registry::serve(&home.path("oci-amd64")).unwrap();
    let image = format!("{}/team/shell:v1", registry.address());
    let finished = home.run([image.as_str(), "--", "echo pulled"]).finish().expect_code(0);
    assert_eq!(last_line(&finished), "pulled");
    let asked = registry.asked();
    assert!(asked >= 3, "{asked}");
    // No image program: what is known of the reference is enough.
    let again = home.run([image.as_str(), "--", "exit 9"]).env("OPENSHELL_VMM_ROOTFS", "/none");
    again.finish().expect_code(9);
    assert_eq!(registry.asked(), asked);
    let never = format!("{}/team/other:v1", registry.address());
    let finished = home.run(["--pull", "never", &never]).finish().expect_code(125);
    assert!(finished.stderr.contains("there is no image"), "{finished}");
    assert_eq!(registry.asked(), asked);
}
