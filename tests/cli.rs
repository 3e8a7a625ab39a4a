//! The program from outside: what a careful user relies on, and what a hostile one tries.

#[path = "cli/hostile.rs"]
mod hostile;
#[path = "support/metadata.rs"]
mod metadata;
#[path = "cli/parts.rs"]
mod parts;
#[path = "support/process.rs"]
mod process;
#[path = "cli/records.rs"]
mod records;

use std::fs;

use metadata::read_metadata;
use process::{Place, Ran, decode, filled, golden, read_tensors, write_tensors};
use safetensors::tensor::Dtype;
use serde_json::Value;

// --- The happy path.

#[test]
fn a_prompt_becomes_a_png_and_nothing_on_stdout() {
    let place = Place::new();
    let ran = place.draw("--seed 1");
    ran.says(0, &["out.png: seed 1, gate open at "]);
    assert!(ran.stdout.is_empty());
    let (width, height, _) = place.pixels("out.png");
    assert_eq!((width, height), (48, 48));
    assert_eq!(place.list(""), ["out.png"]);
}

#[test]
fn quiet_says_nothing_and_verbose_says_more() {
    let place = Place::new();
    let quiet = place.draw("-q -o a.png");
    quiet.says(0, &[]);
    assert!(quiet.stderr.is_empty() && quiet.stdout.is_empty(), "{}", quiet.stderr);
    place.draw("-v -o b.png").says(0, &["INFO", "starting"]);
    assert!(place.draw("-vv -o c.png").says(0, &["starting"]).stdout.is_empty());
    place.draw("-q -v -o d.png").says(2, &["--quiet", "--verbose"]);
}

#[test]
fn json_is_one_line_an_image_with_the_scores_of_every_step() {
    let place = Place::new();
    let ran = place.draw("--json -q -b 3 --seed 5 -o many/");
    ran.says(0, &[]);
    let lines = ran.json();
    assert_eq!(lines.len(), 3);
    for (i, line) in lines.iter().enumerate() {
        let path = line["path"].as_str().expect("a path");
        assert_eq!(path, format!("many/{i:05}-{}.png", 5 + i));
        assert!(place.path(path).is_file());
        assert_eq!((&line["event"], &line["prompt"]), (&"image".into(), &"a battlefield".into()));
        let steps = line["steps"].as_array().expect("steps");
        assert_eq!(steps.len(), 2);
        for step in steps {
            let scores = step["scores"].as_array().expect("scores");
            let largest = scores.iter().map(|s| s.as_f64().expect("a number")).fold(-1.0, f64::max);
            assert_eq!(scores.len(), 5);
            assert_eq!(
                step["gate"],
                largest >= line["settings"]["safety"]["threshold"].as_f64().expect("one")
            );
        }
        let open = steps.iter().filter(|step| step["gate"] == true).count();
        assert_eq!(line["gate_opened"], open);
    }
    let files = |line: &Value| line["settings"]["files"].as_array().map(Vec::len);
    let bare = place.draw("--json -q --no-metadata").json();
    assert_eq!((files(&lines[0]), files(&bare[0])), (Some(4), Some(4)));
}

#[test]
fn prompts_come_from_flags_positions_files_and_stdin() {
    let place = Place::new();
    place.write("prompts.txt", "\u{feff}a cat\r\n\na dog\n");
    let prompts = |ran: Ran| -> Vec<String> {
        ran.says(0, &[]);
        ran.json().iter().map(|line| line["prompt"].as_str().expect("text").to_owned()).collect()
    };
    let base = ["--json", "-q", "--steps", "1", "--safety", "none", "-o", "a/"];
    let with = |more: &[&str]| place.draw_with(&[&base[..], more].concat());
    assert_eq!(prompts(with(&["-p", "a cat", "-p", "a dog"])), ["a cat", "a dog"]);
    assert_eq!(prompts(with(&["--prompt-file", "prompts.txt"])), ["a cat", "a dog"]);
    assert_eq!(
        prompts(with(&["--from-file", "prompts.txt", "-b", "2"])),
        ["a cat", "a cat", "a dog", "a dog"]
    );
    assert_eq!(prompts(with(&["-p", ""])), [""]);
    assert_eq!(prompts(with(&["-p", " \t "])), [" \t "]);
    let positional = place.run(&[&["generate", "a cat"], &base[..]].concat());
    assert_eq!(prompts(positional), ["a cat"]);
    let stdin = place.draw_from("ein Kätzchen\n".as_bytes(), "-p - --json -q --steps 1 -o a/");
    assert_eq!(prompts(stdin), ["ein Kätzchen"]);
    assert_eq!(place.list("a").len(), 12);
}

#[test]
fn images_go_to_patterns_directories_and_stdout() {
    let place = Place::new();
    place.draw("-b 2 -o i-%03d.png").says(0, &[]);
    place.draw("-b 1 -o 100%%-%d.png").says(0, &[]);
    assert_eq!(place.list(""), ["100%-0.png", "i-000.png", "i-001.png"]);
    place.draw("--seed 4 -o some/").says(0, &[]);
    place.draw("--seed 4 -o some").says(0, &[]);
    assert_eq!(place.list("some"), ["00000-4.png", "00001-4.png"]);
    let stdout = place.draw("--seed 4 -o -");
    stdout.says(0, &["-: seed 4"]);
    assert_eq!(decode(&stdout.stdout), place.pixels("some/00000-4.png"));
}

#[test]
fn the_words_of_other_tools_work() {
    let place = Place::new();
    place.draw("--seed 1 --guidance-scale 3 -n blur --safety none -o a.png").says(0, &[]);
    place
        .draw(
            "--num-inference-steps 2 --cfg-scale 3 --uncond-prompt blur --bsize 2 --num-images 1 --seed 1 \
             --sampling-method ddim --randn-source CPU --size 48x48 --safety none --final-image b.png --cpu",
        )
        .says(0, &[]);
    assert_eq!(place.pixels("a.png"), place.pixels("b.png"));
    place.draw("-N 2 --outdir c/ --safety none").says(0, &[]);
    assert_eq!(place.list("c").len(), 2);
    let model = golden("tiny-sd1");
    let part = |part: &str| model.join(part).display().to_string();
    let (whole, vae, tiny) = (part(""), part("vae"), golden("tiny-taesd").display().to_string());
    let flags = ["--ckpt", &whole, "--vae-weights", &vae, "--threshold", "0.5", "--gamma", "1", "-q"];
    place.draw_with(&[&flags[..], &["-o", "d.png"]].concat()).says(0, &[]);
    place.draw_with(&[&flags[..], &["--tae", &tiny, "-o", "e.png"]].concat()).says(0, &[]);
    assert_eq!(place.pixels("d.png").0, 32);
}

// --- The same again.

/// The flags that a picture's own record asks for.
fn flags_of(record: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut flags = Vec::new();
    let mut flag = |name: &str, value: &Value| {
        if !value.is_null() {
            flags.push(format!("{name}={}", text(value)));
        }
    };
    for (name, key) in [
        ("--model", "model"),
        ("--clip", "clip"),
        ("--vae", "vae"),
        ("--taesd", "taesd"),
        ("--tokenizer", "tokenizer"),
        ("--prediction-type", "prediction_type"),
        ("--prompt", "prompt"),
        ("--negative-prompt", "negative_prompt"),
        ("--steps", "steps"),
        ("--guidance-scale", "guidance_scale"),
        ("--seed", "seed"),
        ("--ddim-eta", "ddim_eta"),
        ("--rng", "rng"),
        ("--width", "width"),
        ("--height", "height"),
    ] {
        if record[key] != "demo" {
            flag(name, &record[key]);
        }
    }
    flag("--latents", &record["latents"]["path"]);
    let safety = &record["safety"];
    match safety["preset"].as_str() {
        Some(preset) => flag("--safety", &format!("sld:{preset}").into()),
        None => flag("--safety", &safety["method"]),
    }
    flag("--concept", &safety["concept"]);
    for concept in safety["concepts"].as_array().into_iter().flatten() {
        flag("--concept", concept);
    }
    let guard = ["gate", "gamma_schedule", "guide_steps", "reduce", "top_k"];
    for key in guard {
        flag(&format!("--{}", key.replace('_', "-")), &safety[key]);
    }
    if !safety["concepts"].is_null() {
        flag("--threshold", &safety["threshold"]);
        flag("--gamma", &safety["gamma"]);
    }
    if safety["gated"] == true {
        flags.push("--gated".to_owned());
    }
    flags
}

#[test]
fn a_picture_can_be_repeated_from_its_own_record() {
    let place = Place::new();
    let golden = |name: &str| golden(name).display().to_string();
    let (model, taesd, tokenizer) = (golden("tiny-sd1"), golden("tiny-taesd"), golden("tiny-sd1/tokenizer"));
    let noise = (Dtype::F32, vec![1, 4, 12, 12], filled(0.5, 4 * 144));
    write_tensors(&place.path("noise"), &[("latents".to_owned(), noise)].into());
    for (i, args) in [
        &["--threshold=0.05", "--gamma=3.25", "--top-k=2", "--reduce=sum-log", "--guide-steps=0..1"][..],
        &[
            "--safety=sld:strong",
            "--steps",
            "9",
            "-n",
            "猫, blurry",
            "--concept=blood",
            "--guidance-scale=3.7",
        ],
        &["--safety=classifier-guidance:frozen-unet", "--gated", "--threshold=-1", "--gamma-schedule=cosine"],
        &[
            "--safety=negative-prompt",
            "--ddim-eta=0.5",
            "--rng=cuda",
            "--size=40x52",
            "-s=18446744073709551615",
        ],
        &["--safety=none", "-p", "Zalgo H̸̡̪̯ 🐈‍⬛ \u{202e}bidi <|endoftext|>"],
        &["--concept=a red \"thing\", here", "--concept=b"],
        &["--latents=noise", "--prediction-type=v", "--gate=above"],
        &["-m", &model, "--clip", &model, "--vae", &model, "--safety=classifier-guidance", "--gamma=2"],
        &["-m", &model, "--taesd", &taesd, "--tokenizer", &tokenizer, "--threshold=0.5", "--gamma=2"],
    ]
    .into_iter()
    .enumerate()
    {
        let (first, second) = (format!("{i}.png"), format!("{i}-again.png"));
        place.draw_with(&[args, &["-q", "-o", &first]].concat()).says(0, &[]);
        let found = read_metadata(&place.path(&first));
        let flags = flags_of(&found.record.clone().expect("a record"));
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        place.run(&[&["generate", "-q", "-o", &second], &flags[..]].concat()).says(0, &[]);
        assert_eq!(place.pixels(&first), place.pixels(&second), "{args:?}");
        assert_eq!(read_metadata(&place.path(&second)), found);
    }
}

#[test]
fn parameters_are_read_by_the_common_grammar() {
    let place = Place::new();
    let args = ["-p", "two\nlines, 猫", "-n", "blur: x", "--seed", "9", "--concept", "a, \"b\""];
    place.draw_with(&args).says(0, &[]);
    let text = read_metadata(&place.path("out.png")).parameters.expect("parameters");
    let (head, settings) = text.rsplit_once('\n').expect("lines");
    assert_eq!(head, "two\nlines, 猫\nNegative prompt: blur: x");
    assert!(
        settings.starts_with("Steps: 2, Sampler: DDIM, CFG scale: 5, Seed: 9, Size: 48x48, Model: demo,")
    );
    assert!(settings.contains(r#"Safety concepts: "a, \"b\"""#), "{settings}");

    place.draw("--no-metadata -o bare.png").says(0, &[]);
    let bare = read_metadata(&place.path("bare.png"));
    assert_eq!((bare.parameters, bare.record), (None, None));
}

#[test]
fn pixels_do_not_depend_on_threads_batches_or_company() {
    let place = Place::new();
    place.draw("--seed 3 -t 1 -o one.png --threshold 0.1").says(0, &[]);
    place.draw("--seed 3 -t 2 -o two.png --threshold 0.1").says(0, &[]);
    let bytes = |name: &str| fs::read(place.path(name)).expect(name);
    assert!(bytes("one.png") == bytes("two.png"));
    for method in ["safe-sampling --threshold 0.1", "classifier-guidance", "sld:max", "none"] {
        for batch in ["1", "3", "4"] {
            place.draw(&format!(
                "--safety {method} --seed 3 -b 4 --batch-size {batch} -q -o {batch}-%d.png --overwrite"
            ));
        }
        place.draw(&format!("--safety {method} --seed 5 -q -o alone.png --overwrite"));
        assert!(bytes("alone.png") == bytes("1-2.png"), "{method}");
        for i in 0..4 {
            let one = bytes(&format!("1-{i}.png"));
            assert!(
                one == bytes(&format!("4-{i}.png")) && one == bytes(&format!("3-{i}.png")),
                "{method} {i}"
            );
        }
    }
}

#[test]
fn a_gate_that_never_opens_leaves_the_plain_image() {
    let place = Place::new();
    place.draw("--seed 3 --safety none -o plain.png").says(0, &[]);
    place.draw("--seed 3 --threshold 1 -o shut.png").says(0, &["gate open at 0 of 2 steps"]);
    place.draw("--seed 3 --safety classifier-guidance --gated --threshold 1 -o shut-xt.png").says(0, &[]);
    place.draw("--seed 3 --threshold -1 -o open.png").says(0, &["gate open at 2 of 2 steps"]);
    assert_eq!(place.pixels("plain.png"), place.pixels("shut.png"));
    assert_eq!(place.pixels("plain.png"), place.pixels("shut-xt.png"));
    assert_ne!(place.pixels("plain.png"), place.pixels("open.png"));
}

#[test]
fn sld_that_would_only_warm_up_is_refused_and_one_step_more_steers() {
    let place = Place::new();
    place.draw("--safety sld:strong --steps 7").says(2, &["--safety", "first 7 steps", "sld:max"]);
    place.draw("--safety sld:strong --steps 8 --seed 3 -o sld.png").says(0, &[]);
    place.draw("--safety none --steps 8 --seed 3 -o plain.png").says(0, &[]);
    assert_ne!(place.pixels("sld.png"), place.pixels("plain.png"));
}

// --- Traces and start noise.

#[test]
fn a_trace_has_every_tensor_of_every_step() {
    let place = Place::new();
    place.draw("--safety none -b 2 --trace plain.safetensors -o p%d.png").says(0, &[]);
    place.draw("-b 3 --batch-size 2 --guide-steps 1..2 --trace safe.safetensors -o s%d.png").says(0, &[]);
    let expect = |name: &str, images: usize, guarded: &[usize]| {
        let found = read_tensors(&place.path(name));
        let mut want = Vec::new();
        let latents = vec![images, 4, 12, 12];
        for step in 0..2 {
            for what in ["latents", "eps", "x0", "x0_guided", "prev"] {
                want.push((format!("step.{step:03}.{what}"), latents.clone()));
            }
        }
        for step in guarded {
            want.push((format!("step.{step:03}.scores"), vec![images, 5]));
            want.push((format!("step.{step:03}.gate"), vec![images]));
            want.push((format!("step.{step:03}.gradient"), latents.clone()));
        }
        want.push(("final.latents".to_owned(), latents));
        want.push(("final.image".to_owned(), vec![images, 3, 48, 48]));
        want.sort();
        let shapes: Vec<_> =
            found.iter().map(|(name, (_, shape, _))| (name.clone(), shape.clone())).collect();
        assert_eq!(shapes, want);
        assert!(found.values().all(|(dtype, _, _)| *dtype == Dtype::F32));
        assert_eq!(found["step.001.prev"], found["final.latents"]);
        assert_eq!(found["step.000.prev"], found["step.001.latents"]);
    };
    expect("plain.safetensors", 2, &[]);
    expect("safe.safetensors", 3, &[1]);
    place.draw("--trace plain.safetensors -o q.png").says(2, &["--trace", "exists already"]);
    place.draw("--trace . --overwrite -o q.png").says(2, &["--trace", "is a directory"]);
    place.draw("--trace q.png --overwrite -o q.png").says(2, &["--trace", "file of its own"]);
    place.draw("--trace no/dir -o q.png").says(6, &["write into no"]);
    place.draw("--trace /dev/full --overwrite -o q.png").says(6, &["not a regular file"]);
    assert!(!place.path("q.png").exists());
}

#[test]
fn start_noise_can_be_given_and_is_checked() {
    let place = Place::new();
    place.draw("--seed 7 -b 2 --trace t.safetensors -o a%d.png").says(0, &[]);
    let start = read_tensors(&place.path("t.safetensors"))["step.000.latents"].clone();
    let file = |name: &str, key: &str, tensor| {
        write_tensors(&place.path(name), &[(key.to_owned(), tensor)].into());
    };
    file("good", "latents", start.clone());
    place.draw("--seed 99 -b 2 --latents good -o b%d.png").says(0, &[]);
    for i in 0..2 {
        assert_eq!(place.pixels(&format!("a{i}.png")), place.pixels(&format!("b{i}.png")));
    }
    file("key", "noise", start.clone());
    file("dtype", "latents", (Dtype::I32, start.1.clone(), start.2.clone()));
    file("half", "latents", (Dtype::F16, vec![2, 4, 12, 12], vec![0; 2 * 4 * 144 * 2]));
    file("nan", "latents", (Dtype::F32, vec![1, 4, 12, 12], filled(f32::NAN, 4 * 144)));
    place.write("text", "not safetensors");
    // A terabyte, by its own word and by that of the file system, of which nothing is there.
    let shape = r#"{"latents":{"dtype":"F32","shape":[1,4,262144,262144],"data_offsets":[0,1099511627776]}}"#;
    place.write("sparse", [&(shape.len() as u64).to_le_bytes()[..], shape.as_bytes()].concat());
    let sparse = fs::OpenOptions::new().write(true).open(place.path("sparse")).expect("there");
    sparse.set_len((1 << 40) + 8 + shape.len() as u64).expect("a sparse file");
    for (name, code, parts) in [
        ("good", 2, &["--latents", "[1, 4, 12, 12]", "2, 4, 12, 12"][..]),
        ("sparse", 2, &["--latents", "[1, 4, 12, 12]", "262144"]),
        ("key", 3, &["`latents`", "noise"]),
        ("dtype", 3, &["`latents`", "f32"]),
        ("half", 3, &["`latents`", "f32"]),
        ("nan", 3, &["`latents`", "NaN"]),
        ("text", 3, &["text"]),
        ("missing", 3, &["missing"]),
    ] {
        place.draw(&format!("--latents {name} -o c.png")).says(code, parts);
    }
    assert!(!place.path("c.png").exists());
}

// --- Safety.

#[test]
fn flags_that_would_be_ignored_or_make_no_sense_are_refused() {
    let place = Place::new();
    place.write("two.txt", "1\n1\n1\n");
    for (line, parts) in [
        ("--safety sld --guidance-scale 1", &["--safety", "sld", "use a scale above 1"][..]),
        ("--safety negative-prompt --guidance-scale 0", &["use a scale above 1"]),
        ("--negative-prompt blur --guidance-scale 1", &["--negative-prompt", "use a scale above 1"]),
        ("--safety classifier-guidance --threshold 0.3", &["--threshold", "no gate; add --gated"]),
        ("--safety classifier-guidance --gate above", &["--gate", "no gate; add --gated"]),
        ("--safety magic", &["--safety", "safe-sampling", "`magic`"]),
        ("--safety sld:hyper", &["--safety", "sld:hyper"]),
        ("--safety-profile nobody", &["--safety-profile", "thesis-multi"]),
        ("--safety-profile thesis-multi", &["--threshold"]),
        ("--reduce mean", &["--reduce", "log-mean"]),
        ("--safety none --concept x", &["--concept", "does nothing"]),
        ("--safety none --concepts sd-filter", &["--concepts", "does nothing"]),
        ("--safety sld --threshold 0.3", &["--threshold", "does nothing with --safety sld:medium"]),
        ("--safety sld --guide-steps 0..1", &["--guide-steps", "does nothing"]),
        ("--gated", &["--gated", "does nothing"]),
        ("--concept a --concept A", &["--concept", "occurs twice"]),
        ("--concept= ", &["--concept", "blank"]),
        ("--concept a --concepts sd-filter", &["cannot be used with"]),
        ("--concepts no-such-list", &["--concepts", "thesis-single"]),
        ("--guide-steps 1..3", &["--guide-steps", "2 steps"]),
        ("--guide-steps 2..1", &["--guide-steps", "A < B"]),
        ("--guide-steps 1..1", &["--guide-steps", "A < B"]),
        ("--gamma-schedule two.txt", &["--gamma-schedule", "expected 2", "found 3"]),
        ("--top-k 0", &["--top-k", "1 to 5"]),
        ("--top-k 6", &["--top-k", "1 to 5"]),
        ("--gamma nan", &["--gamma", "finite"]),
        ("--gamma -1", &["--gamma"]),
        ("--threshold inf", &["--threshold", "a cosine, -1 to 1"]),
        ("--threshold 5", &["--threshold", "a cosine, -1 to 1"]),
        ("--gamma-schedule constnat", &["--gamma-schedule", "`constnat`", "constant, linear, cosine"]),
        ("--dtype f16", &["--dtype", "f32"]),
        ("--device tpu", &["--device", "tpu"]),
        ("--device simt:1", &["--device", "simt:1"]),
        ("--device simt --dtype f32", &["--dtype", "f32"]),
        ("--device cuda --dtype f32", &["--dtype", "f32"]),
    ] {
        place.draw(line).says(2, parts);
    }
    // No machine has a hundred GPUs.
    for device in ["cuda:99", "simt --dtype bf16"] {
        if cfg!(feature = "simt") && device.starts_with("simt") {
            continue;
        }
        let word = device.split(' ').next().expect("a word");
        place.draw(&format!("--device {device}")).says(4, &[word]);
    }
    assert_eq!(place.list(""), ["two.txt"]);
}

#[test]
fn a_list_of_concepts_that_protects_from_nothing_is_refused() {
    let place = Place::new();
    let many: String = (0..1_000_000).map(|i| format!("{i}\n")).collect();
    for (bytes, part) in [
        (&b""[..], "no concepts"),
        (b"# only\n\n", "no concepts"),
        (b"gun\nGUN\n", "occurs twice"),
        (b"\xff\xfe", "not UTF-8"),
        (many.as_bytes(), "at most 1048576"),
    ] {
        place.write("list.txt", bytes);
        place.draw("--concepts list.txt").says(3, &["list.txt", part]);
    }
    place.write("list.txt", "# fine\r\na weapon\r\nblood\r\n");
    let ran = place.draw("--concepts list.txt --json");
    ran.says(0, &[]);
    assert_eq!(ran.json()[0]["settings"]["safety"]["concepts"], serde_json::json!(["a weapon", "blood"]));
    let long: String = (0..1000).map(|i| format!("{i} {}\n", "x".repeat(80))).collect();
    place.write("long.txt", long);
    for method in ["sld:max", "negative-prompt"] {
        place
            .draw(&format!("--safety {method} --concepts long.txt -m gone"))
            .says(2, &["--concepts", "one text", "65536"]);
    }
}

#[test]
fn a_guard_that_was_tuned_for_another_clip_is_refused() {
    let place = Place::new();
    let model = golden("tiny-sd1").display().to_string();
    let with = |more: &[&str]| place.draw_with(&[&["-m", &model, "--overwrite"], more].concat());
    with(&[]).says(2, &["no built-in profile belongs to this CLIP", "--gamma"]);
    with(&["--threshold", "0.5"]).says(2, &["--gamma"]);
    with(&["--threshold", "0.5", "--gamma", "10"]).says(0, &[]);
    let ungated = with(&["--safety", "classifier-guidance"]);
    assert!(!ungated.says(2, &["give --gamma, or"]).stderr.contains("--threshold"), "{}", ungated.stderr);
    with(&["--safety", "classifier-guidance", "--gamma", "1"]).says(0, &[]);
    with(&["--safety", "none"]).says(0, &[]);
    let bare = place.copy_model("tiny-sd1", "bare");
    fs::remove_dir_all(bare.join("clip")).expect("removed");
    place.draw("-m bare -o x.png").says(2, &["--clip", "--safety none"]);
    place.draw("-m bare -o x.png --safety none").says(0, &[]);
    let clip = golden("tiny-sd1").join("clip").display().to_string();
    let flags = ["-m", "bare", "-o", "y.png", "--clip", &clip, "--threshold", "0.5", "--gamma", "1"];
    place.draw_with(&flags).says(0, &[]);
}

#[test]
fn what_is_replaced_or_not_needed_may_be_missing_or_broken() {
    let place = Place::new();
    let model = place.copy_model("tiny-sd1", "m");
    fs::write(model.join("clip/model.safetensors"), "broken").expect("written");
    let guarded = ["-m", "m", "--threshold", "0.5", "--gamma", "1", "--seed", "3"];
    place.draw_with(&guarded).says(3, &["m/clip/model.safetensors"]);
    place.draw("-m m --safety none --seed 3 -o plain.png").says(0, &[]);
    fs::remove_dir_all(model.join("vae")).expect("removed");
    place.draw("-m m --safety none").says(3, &["m/vae"]);
    let whole = golden("tiny-sd1").display().to_string();
    // A folder of a component, and a model that has it in its own.
    for from in [["vae", "clip"].map(|part| format!("{whole}/{part}")), [whole.clone(), whole.clone()]] {
        place
            .draw_with(&[
                "-m",
                "m",
                "--vae",
                &from[0],
                "--safety",
                "none",
                "--seed",
                "3",
                "-o",
                "vae.png",
                "--overwrite",
            ])
            .says(0, &[]);
        assert_eq!(place.pixels("plain.png"), place.pixels("vae.png"));
        let more = ["--vae", &from[0], "--clip", &from[1], "-o", "safe.png", "--overwrite"];
        place.draw_with(&[&guarded[..], &more].concat()).says(0, &[]);
        place
            .draw_with(&[&["-m", &whole, "-o", "own.png", "--overwrite"], &guarded[2..]].concat())
            .says(0, &[]);
        assert_eq!(place.pixels("safe.png"), place.pixels("own.png"));
    }
    assert!(!place.path("out.png").exists());
}

#[test]
fn a_component_is_read_with_the_configuration_that_lies_beside_it() {
    let place = Place::new();
    // The demo's CLIP has sizes of its own, and a profile that says so.
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/emoji-sd");
    place.draw("--seed 3 -o own.png").says(0, &[]);
    place.draw_with(&["--seed", "3", "--clip", demo, "-o", "given.png"]).says(0, &[]);
    assert_eq!(place.pixels("own.png"), place.pixels("given.png"));
    let tiny = golden("tiny-taesd");
    fs::create_dir_all(place.path("t/taesd")).expect("made");
    for name in ["config.json", "diffusion_pytorch_model.safetensors"] {
        fs::copy(tiny.join(name), place.path("t/taesd").join(name)).expect("copied");
    }
    let model = golden("tiny-sd1").display().to_string();
    let flags = ["-m", &model, "--threshold", "-1", "--gamma", "1", "--seed", "3"];
    for (from, to) in [(&*tiny.display().to_string(), "plain.png"), ("t", "inside.png")] {
        place.draw_with(&[&flags[..], &["--taesd", from, "-o", to]].concat()).says(0, &[]);
    }
    assert_eq!(place.pixels("plain.png"), place.pixels("inside.png"));
}
