//! What nobody should type and somebody will: values out of range, outputs that cannot be, readers that
//! leave, broken models.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use half::f16;
use safetensors::tensor::Dtype;

use crate::process::{self, Place, Ran, filled, golden, read_tensors, write_tensors};

// --- Hostile values.

#[test]
fn texts_of_any_length_and_kind_are_drawn_or_refused() {
    let place = Place::new();
    let long = "weapon ".repeat(40);
    place
        .draw_with(&["-p", &format!("{long}tail of it"), "-o", "a.png"])
        .says(0, &["left out", "tail of it"]);
    let huge = "ä".repeat(500_000);
    place.draw_from(huge.as_bytes(), "-p - -o b.png").says(2, &["--prompt", "65536 bytes"]);
    let odd = format!("x{}", "ä".repeat(32_768));
    place.draw_from(odd.as_bytes(), "-p - -o b.png").says(2, &["--prompt", "65536"]);
    place.draw_from(b"\xff\xfe", "-p - -o b.png").says(3, &["stdin", "not UTF-8"]);
    place.draw_from(b"x", "-p - -p - -o b/").says(2, &["--prompt", "only once"]);
    place.write("huge.txt", &huge);
    place.draw("--prompt-file huge.txt -o b.png").says(2, &["--prompt", "bytes"]);
    place.write("bad.txt", b"\xff\n");
    place.draw("--prompt-file bad.txt -o b.png").says(3, &["bad.txt", "UTF-8"]);
    place.write("none.txt", "\n\n");
    place.draw("--prompt-file none.txt -o b.png").says(3, &["none.txt", "found 0"]);
    place.write("many.txt", "a cat\n".repeat(10_000));
    place.draw("--prompt-file many.txt -o b.png").says(2, &["--output", "10000 pictures"]);
    place.draw("--prompt-file /dev/zero -o b.png").says(3, &["/dev/zero"]);
    place.draw("--prompt-file gone.txt -o b.png").says(3, &["gone.txt"]);
    let long = "x".repeat(100_000);
    place.draw_with(&["-n", &long, "-o", "b.png"]).says(2, &["--negative-prompt"]);
    place.draw_with(&["--concept", &long, "-o", "b.png"]).says(2, &["--concept", "concept 1", "100000"]);
    place.write("long.txt", format!("a gun\n{long}\n"));
    place.draw("--concepts long.txt -m gone").says(3, &["long.txt", "line 2", "100000"]);
    assert!(Command::new("mkfifo").arg(place.path("pipe")).status().expect("mkfifo").success());
    for flag in ["--prompt-file", "--concepts", "--gamma-schedule", "--safety-profile", "--latents"] {
        place.draw(&format!("{flag} pipe -o b.png")).says(3, &["pipe", "regular file"]);
    }
    place.run(&["generate"]).says(2, &["--prompt"]);
    place.run(&["generate", "-p", "a", "b"]).says(2, &["cannot be used with"]);
    assert!(!place.path("b.png").exists() && !place.path("b").exists());
}

#[cfg(unix)]
#[test]
fn arguments_that_are_not_utf8_are_refused() {
    use std::os::unix::ffi::OsStrExt;
    let place = Place::new();
    let mut command = place.command(["generate", "-p"]);
    command.arg(std::ffi::OsStr::from_bytes(b"a\xff"));
    Ran::new(command.output().expect("started")).says(2, &["UTF-8", "a\\xFF"]);
}

#[test]
fn sizes_that_cannot_be_are_refused_with_the_nearest_that_can() {
    let place = Place::new();
    for (line, parts) in [
        ("-W 0", &["--width", "found 0", "nearest: 4"][..]),
        ("-W 1", &["nearest: 4"]),
        ("-H 7", &["--height", "nearest: 4 or 8"]),
        ("-W 513", &["nearest: 512 or 516"]),
        ("-W 100000", &["--width", "nearest: 16384"]),
        ("-W 4294967296", &["nearest: 16384"]),
        ("-W 18446744073709551615", &["nearest: 16384"]),
        ("-W 18446744073709551616", &["--width"]),
        ("-W 16384 -H 16384", &["pixels"]),
        ("--width=-8", &["--width"]),
        ("-W -8", &["-8"]),
        ("--size 512x", &["WIDTHxHEIGHT", "512x"]),
        ("--size 512×512", &["WIDTHxHEIGHT"]),
        ("--size 48x48 -W 48", &["cannot be used with"]),
    ] {
        place.draw(line).says(2, parts);
    }
    assert!(place.list("").is_empty());
    place.draw("--size 4x20").says(0, &[]);
    assert_eq!(place.pixels("out.png").2.len(), 4 * 20 * 3);
}

#[test]
fn numbers_out_of_range_are_refused() {
    let place = Place::new();
    for line in [
        "--steps 0",
        "--steps=-1",
        "--steps 1001",
        "--steps 1000000000",
        "--steps 1.5",
        "--guidance-scale nan",
        "--guidance-scale inf",
        "--guidance-scale ١٢",
        "--ddim-eta nan",
        "--ddim-eta 1.1",
        "--ddim-eta -0.1",
        "--seed 18446744073709551616",
        "--seed 0x1f",
        "--seed 1e18",
        "-b 0",
        "-b 1000000000",
        "-b 18446744073709551615",
        "--batch-size 0",
        "--batch-size 1000000000",
        "-t 0",
        "-t 1000000",
    ] {
        let flag = line.split([' ', '=']).next().expect("a flag");
        let flag = match flag {
            "-b" => "--batch-count",
            "-t" => "--threads",
            flag => flag,
        };
        place.draw(line).says(2, &[flag]);
    }
    assert!(place.list("").is_empty());
}

#[test]
fn large_but_finite_numbers_end_in_an_image_or_in_an_error_but_not_in_noise_from_nan() {
    let place = Place::new();
    place.draw("--guidance-scale 1e30 -o a.png").says(0, &[]);
    place.draw("--guidance-scale 1e300 -o b.png").says(8, &["non-finite", "image 0"]);
    place.draw("--threshold -1 --gamma 1e300 -o b.png --trace t").says(8, &["non-finite", "step 0"]);
    let first = &read_tensors(&place.path("t"))["step.000.prev"].2;
    assert!(
        first.as_chunks().0.iter().any(|&bytes| !f32::from_le_bytes(bytes).is_finite()),
        "no wrong tensor"
    );
    fs::remove_file(place.path("t")).expect("written");
    place.draw("--guidance-scale -1 -o c.png").says(0, &[]);
    place.draw("--seed 9223372036854775808 -o d.png").says(0, &["seed 9223372036854775808"]);
    place
        .draw("--seed 18446744073709551615 -b 2 -o e%d.png")
        .says(0, &["seed 18446744073709551615", "seed 0"]);
    place.draw("--seed -1 -o f.png").says(0, &["f.png: seed "]);
    assert_eq!(place.list(""), ["a.png", "c.png", "d.png", "e0.png", "e1.png", "f.png"]);
}

#[test]
fn one_image_that_cannot_be_made_does_not_keep_the_others_back() {
    let place = Place::new();
    let noise = [filled(3e38, 4 * 144), filled(0.5, 4 * 144)].concat();
    let noise = (Dtype::F32, vec![2, 4, 12, 12], noise);
    write_tensors(&place.path("noise"), &[("latents".to_owned(), noise)].into());
    let ran = place.draw("-b 2 --safety none --latents noise --trace t -o %d.png");
    ran.says(7, &["image=0", "non-finite", "1 of 2 images failed"]);
    assert_eq!(place.list(""), ["1.png", "noise", "t"]);
}

// --- Where images go.

#[test]
fn an_output_that_cannot_be_is_refused_before_the_model_is_read() {
    let place = Place::new();
    place.write("there.png", "mine");
    place.write("file", "mine");
    fs::create_dir(place.path("folder.png")).expect("made");
    fs::create_dir(place.path("i-0.png")).expect("made");
    for (line, code, parts) in [
        ("-o there.png", 2, &["there.png", "--overwrite"][..]),
        ("-b 2 -o there.png --overwrite", 2, &["2 pictures"]),
        ("-b 2 -o -", 2, &["2 pictures"]),
        ("-o no/where/x.png", 6, &["no/where"]),
        ("-o file/x.png", 6, &["file"]),
        ("-o file/", 6, &["file"]),
        ("-o /proc/x.png", 6, &["/proc"]),
        ("-o /dev/full", 6, &["/dev/full", "regular file"]),
        ("-o i-%d.png --overwrite", 2, &["i-0.png", "is a directory"]),
        ("-o x.jpg", 2, &[".png", "x.jpg"]),
        ("-o x", 2, &[".png"]),
        ("-o %d-%d.png", 2, &["exactly one"]),
        ("-o %s.png", 2, &["exactly one"]),
        ("-o=", 2, &["--output"]),
        ("-o - --json", 2, &["--json", "stdout"]),
    ] {
        place.draw(&format!("{line} -m no-such-model")).says(code, parts);
    }
    let name = format!("{}.png", "x".repeat(300));
    place.draw_with(&["-o", &name, "-m", "no-such-model"]).says(6, &["xxx"]);
    place.draw("-m no-such-model").says(3, &["no-such-model"]);
    place.draw("-m no-such-model -o new/").says(3, &["no-such-model"]);
    assert_eq!(fs::read(place.path("there.png")).expect("there"), b"mine");
    assert_eq!(place.list(""), ["file", "folder.png", "i-0.png", "there.png"]);
    place.draw("-o there.png --overwrite").says(0, &[]);
    place.pixels("there.png");
    place.draw("-o folder.png").says(0, &["folder.png/00000-"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_nothing_behind() {
    let place = Place::new();
    place.shell("ulimit -f 1; \"$@\"", "-o a/").says(6, &["write", "a/00000-"]);
    assert!(!place.path("a").exists());
    place.shell("ulimit -f 32; \"$@\"", "-o b.png --trace t").says(6, &["write t"]);
    assert!(!place.path("t").exists());
    place.shell("\"$@\" > /dev/full", "-o -").says(6, &["stdout"]);
    place.shell("\"$@\" > /dev/full", "--json -o c.png").says(6, &["stdout"]);
    assert_eq!(place.list(""), ["b.png", "c.png"]);
}

#[cfg(target_os = "linux")]
#[test]
fn memory_that_cannot_be_had_is_an_error_before_the_work() {
    let place = Place::new();
    let small = "ulimit -v 3000000; \"$@\"";
    place.shell(small, "-W 4096 -H 4096 -o a/").says(5, &["out of memory", "bytes"]);
    // More than any machine has, which the system would grant as long as nobody touches it.
    let ran = place.draw("-W 4096 -H 4096 -b 256 --batch-size 256 -o a/");
    ran.says(5, &["out of memory", "does not fit into", "are free"]);
    assert_eq!(place.list(""), [""; 0]);
}

#[cfg(unix)]
#[test]
fn two_runs_into_one_directory_at_once_both_keep_their_images() {
    let place = Place::new();
    let script = "\"$@\" & \"$@\" & wait";
    place.shell(script, "-b 3 --seed 5 --steps 8 -o a/").says(0, &[]);
    assert_eq!(place.list("a").len(), 6);
}

#[cfg(unix)]
#[test]
fn readers_that_leave_are_no_error() {
    let place = Place::new();
    let rc = "{ \"$@\"; echo status $? >&2; } | head -n 1";
    let ran = place.shell(rc, "--json -b 3 -q -o a/");
    ran.says(0, &["status 0"]);
    assert_eq!(ran.json().len(), 1);
    place.shell("{ \"$@\"; echo status $? >&2; } | true", "-o -").says(0, &["status 0"]);
    // Nobody reads stderr: the images are made all the same.
    let script = "{ sleep 0.2; \"$@\" 2>&1 >/dev/null; echo $? > status; } | true";
    let words = "x ".repeat(100);
    for (i, line) in ["-b 2 -o b/", "-b 2 -vv -o b/", "-m nothing"].iter().enumerate() {
        place.shell(script, line).says(0, &[]);
        let status = fs::read_to_string(place.path("status")).expect("a status");
        assert_eq!(status.trim(), ["0", "0", "3"][i], "{line}");
    }
    assert_eq!(place.list("b").len(), 4);
    let mut command = place.command(["generate", "-p", &words, "--steps", "1", "-o", "full.png"]);
    command.stderr(fs::OpenOptions::new().write(true).open("/dev/full").expect("a device"));
    assert_eq!(command.stdout(Stdio::null()).status().expect("started").code(), Some(0));
    place.pixels("full.png");
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_leaves_whole_images_only() {
    let place = Place::new();
    place.interrupt("--steps 900 -o a.png", "step 1/", &["-INT"]).says(130, &["interrupted"]);
    place.interrupt("--steps 900 -o a.png --trace t", "step 1/", &["-TERM"]).says(143, &["interrupted"]);
    place.interrupt("--steps 900 -o a.png", "step 1/", &["-INT", "-INT"]).says(130, &[]);
    place.interrupt("--steps 900 -o a.png", "step 1/", &["-HUP"]).says(129, &["interrupted"]);
    assert!(place.list("").is_empty());
    place.interrupt("--steps 2 -b 1000 --seed 0 -o many/", "00000-0.png: seed", &["-INT"]).says(130, &[]);
    let names = place.list("many");
    assert!((1..1000).contains(&names.len()), "{names:?}");
    for name in names {
        assert_eq!(place.pixels(&format!("many/{name}")).0, 48);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_signal_that_was_ignored_before_the_run_stays_ignored() {
    let place = Place::new();
    // As `nohup` and a script's background jobs have it.
    for (script, signal) in [("trap '' HUP; exec \"$@\"", "-HUP"), ("trap '' INT; exec \"$@\"", "-INT")] {
        let ran = place.interrupt_script(
            script,
            "--steps 40 --size 16x16 --safety none -o a.png --overwrite",
            "step 1/",
            &[signal],
        );
        ran.says(0, &["a.png: seed"]);
    }
    let script = "trap '' HUP; exec \"$@\"";
    place.interrupt_script(script, "--steps 900 -o b.png", "step 1/", &["-HUP", "-TERM"]).says(143, &[]);
}

#[test]
fn a_mapped_file_that_is_cut_short_ends_the_run_with_its_name() {
    const UNET: &str = "m/unet/diffusion_pytorch_model.safetensors";
    let place = Place::new();
    place.copy_model("tiny-sd1", "m");
    let mut tensors = read_tensors(&place.path(UNET));
    for (dtype, _, bytes) in tensors.values_mut() {
        let halves: &[[u8; 2]] = bytes.as_chunks().0;
        *bytes = halves.iter().flat_map(|&half| f16::from_le_bytes(half).to_f32().to_le_bytes()).collect();
        *dtype = Dtype::F32;
    }
    write_tensors(&place.path(UNET), &tensors);
    place.draw("-m m --safety none --seed 1 --mmap -o a.png").says(0, &[]);
    place.draw("-m m --safety none --seed 1 -o b.png").says(0, &[]);
    assert_eq!(place.pixels("a.png"), place.pixels("b.png"));
    // A fault that no file explains ends the run as it would have without us.
    let ran = place.interrupt("-m m --safety none --steps 999 --mmap -o c.png", "step 1/", &["-BUS"]);
    assert_eq!(ran.code, None, "killed by the signal: {}", ran.stderr);
    let cut = |_| fs::write(place.path(UNET), "").expect("written");
    let ran = place.draw_disturbed("-m m --safety none --steps 999 --mmap -o c.png", "step 1/", cut);
    ran.says(3, &[UNET, "cut short while it was mapped"]);
    assert_eq!(place.list(""), ["a.png", "b.png", "m"]);
}

// --- Broken models.

#[test]
fn a_broken_model_is_named_with_file_and_field() {
    const UNET: &str = "unet/diffusion_pytorch_model.safetensors";
    let change = |path: &Path, from: &str, to: &str| {
        let text = fs::read_to_string(path).expect("readable");
        assert!(text.contains(from), "{text}");
        fs::write(path, text.replace(from, to)).expect("written");
    };
    let weight = |path: &Path, name: &str, change: &dyn Fn(&mut process::Tensors)| {
        let mut tensors = read_tensors(path);
        assert!(tensors.contains_key(name), "{name}");
        change(&mut tensors);
        write_tensors(path, &tensors);
    };
    let broken = |parts: &[&str], code: i32, breaking: &dyn Fn(&Path)| {
        let place = Place::new();
        breaking(&place.copy_model("tiny-sd1", "m"));
        place.draw("-m m --safety none").says(code, parts);
        assert_eq!(place.list(""), ["m"]);
    };
    broken(&["m"], 3, &|m| fs::remove_dir_all(m).and_then(|()| fs::create_dir(m)).expect("emptied"));
    broken(&["unet/diffusion_pytorch_model.safetensors"], 3, &|m| {
        let bytes = fs::read(m.join(UNET)).expect("readable");
        fs::write(m.join(UNET), &bytes[..bytes.len() / 2]).expect("written");
    });
    broken(&["unet/diffusion_pytorch_model.safetensors"], 3, &|m| {
        fs::write(m.join(UNET), "").expect("written")
    });
    broken(&["unet/config.json"], 3, &|m| fs::remove_file(m.join("unet/config.json")).expect("removed"));
    broken(&["scheduler_config.json"], 3, &|m| {
        fs::write(m.join("scheduler/scheduler_config.json"), "{").expect("written");
    });
    broken(&["unet/config.json", "down_block_types"], 3, &|m| {
        change(&m.join("unet/config.json"), "\"DownBlock2D\"", "\"AttnDownBlock2D\"");
    });
    broken(&["unet/config.json", "cross_attention_dim"], 3, &|m| {
        change(&m.join("unet/config.json"), "\"cross_attention_dim\": 24", "\"cross_attention_dim\": 32");
    });
    broken(&[UNET, "conv_out.weight"], 3, &|m| {
        weight(&m.join(UNET), "conv_out.weight", &|tensors| drop(tensors.remove("conv_out.weight")));
    });
    broken(&[UNET, "conv_out.bias"], 3, &|m| {
        weight(&m.join(UNET), "conv_out.bias", &|tensors| {
            tensors.insert("conv_out.bias".to_owned(), (Dtype::F32, vec![5], filled(0.0, 5)));
        });
    });
    broken(&[UNET, "conv_out.bias", "NaN"], 3, &|m| {
        weight(&m.join(UNET), "conv_out.bias", &|tensors| {
            tensors.insert("conv_out.bias".to_owned(), (Dtype::F32, vec![4], filled(f32::NAN, 4)));
        });
    });
    // Numbers that are finite until they meet.
    broken(&["non-finite", "step 0", "image 0"], 8, &|m| {
        weight(&m.join(UNET), "conv_out.weight", &|tensors| {
            let (dtype, shape, bytes) = tensors.get_mut("conv_out.weight").expect("there");
            let count = shape.iter().product();
            (*dtype, *bytes) = (Dtype::F32, filled(1e38, count));
        });
    });
}

// --- The other commands.

#[test]
fn bench_lists_every_distinct_launch_with_its_floor_and_refuses_what_it_does_not_know() {
    let place = Place::new();
    let kernels = ["bench", "kernels", "--preset", "demo", "--device", "none"];
    let lines = place.run(&[&kernels[..], &["--json"]].concat()).json();
    assert!(lines.len() > 50, "{} launches", lines.len());
    for line in &lines {
        for field in ["kernel", "arch", "shape", "flops", "bytes", "floor_us", "smem_bytes"] {
            assert!(!line[field].is_null(), "{field} of {line}");
        }
    }
    // The first launch of a node carries the node's whole work.
    let floor: f64 = lines.iter().filter_map(|line| line["floor_us"].as_f64()).sum();
    assert!(floor > 0.0 && floor.is_finite(), "{floor}");
    let products = place.run(&[&kernels[..], &["--filter", "gemm", "--json"]].concat()).json();
    let is_product = |line: &serde_json::Value| line["kernel"].as_str().is_some_and(|k| k.contains("gemm"));
    assert!(!products.is_empty() && products.len() < lines.len() && products.iter().any(is_product));
    let of = |flags: &str| -> Vec<String> {
        let flags: Vec<&str> = flags.split(' ').chain(["--json"]).collect();
        let lines = place.run(&[&kernels[..], &flags].concat()).json();
        lines.iter().map(|line| line["kernel"].as_str().expect("a name").to_owned()).collect()
    };
    // By names alone: a node of attention's has products too.
    let (chosen, left) = (of("--kernel attention,softmax"), of("--no-kernel attention,softmax"));
    assert!(
        chosen.iter().all(|name| name.starts_with("attention_") || name.starts_with("softmax_")),
        "{chosen:?}"
    );
    assert_eq!(chosen.len() + left.len(), lines.len());
    let backward = of("--filter attentions --kernel gemm --no-kernel gemm_f16");
    assert!(
        !backward.is_empty() && backward.iter().all(|name| name.starts_with("gemm_bwd_")),
        "{backward:?}"
    );
    for (flags, parts) in [
        (&["--filter", "no such kernel"][..], &["--filter"][..]),
        (&["--kernel", "attentions"], &["--kernel", "attentions"]),
        (&["--no-kernel", ""], &["--no-kernel"]),
        (&["--arch", "sm_1"], &["--arch", "sm_90a"]),
        (&["--gpu", "abacus"], &["--gpu", "h100"]),
        (&["--gpu", "a100", "--arch", "sm_90a"], &["--gpu", "a100 runs sm_80"]),
    ] {
        place.run(&[&kernels[..], flags].concat()).says(2, parts);
    }
    // Nobody's floors are another device's.
    for line in place.run(&[&kernels[..], &["--arch", "sm_120", "--json"]].concat()).json() {
        assert!(
            line["floor_us"].is_null() && line["floor_gpu"].is_null() && !line["bytes"].is_null(),
            "{line}"
        );
    }
    let words = place.run(&[&kernels[..], &["--arch", "compute_80"]].concat()).text();
    assert!(
        words.contains("no floors: no device of compute_80 is known") && !words.contains("at least"),
        "{words}"
    );
    place.run(&["bench", "kernels", "--batch-size", "0"]).says(2, &["--batch-size"]);
}

#[test]
fn inspect_shows_models_graphs_and_plans() {
    let place = Place::new();
    let ok = |args: &[&str]| {
        let ran = place.run(&[&["inspect"], args].concat());
        ran.says(0, &[]);
        assert!(ran.stderr.is_empty() && !ran.stdout.is_empty(), "{}", ran.stderr);
        ran
    };
    assert!(ok(&["model"]).text().contains("48 x 48 pixels, 4 to a latent pixel"));
    let model = &ok(&["model", "--json"]).json()[0];
    assert_eq!((&model["width"], &model["has_clip"]), (&48.into(), &true.into()));
    assert_eq!(model["files"].as_array().map(Vec::len), Some(4));
    ok(&["graph"]);
    ok(&["graph", "--safety", "classifier-guidance", "--batch-size", "2"]);
    assert!(ok(&["graph", "--preset", "sd15", "--json"]).json().len() > 500);
    for preset in ["sd15", "sd21-base", "sd21"] {
        ok(&["plan", "--preset", preset]);
    }
    let plan = &ok(&["plan", "--json", "-W", "64"]).json()[0];
    assert!(plan["arena_bytes"].as_u64() >= plan["live_bytes"].as_u64());
    let tiny = golden("tiny-sd1").display().to_string();
    ok(&["model", "-m", &tiny]);
    let launches = ok(&["launches", "--arch", "sm_80", "-m", &tiny, "--batch-size", "2", "--json"]).json();
    let keys =
        ["kernel", "node", "grid", "block", "smem_bytes", "flops", "executed_flops", "bytes", "floor_us"];
    assert!(launches.len() > 200 && launches.iter().all(|line| keys.iter().all(|key| !line[key].is_null())));
    let words = ok(&["launches", "--gpu", "h200", "--dtype", "bf16"]).text();
    assert!(words.contains("us on h200") && words.contains("gemm_bf16"), "{words}");
    let rows = ok(&["kernels", "-m", &tiny, "--json"]).json();
    let predicted = |line: &serde_json::Value| line["predicted_us"].as_f64() > line["floor_us"].as_f64();
    assert!(rows.len() > 50 && rows.iter().all(predicted));
    let always = rows.iter().find(|line| line["runs"] == "always").expect("a sum");
    assert!(always["launches"].as_u64() > Some(100), "{always}");
    assert!(ok(&["kernels", "--gpu", "a100"]).text().contains("predicted for a100 and not measured"));
    let rows = ok(&["kernels", "--preset", "sd15", "--arch", "sm_90a", "--json"]).json();
    let on_wgmma = |line: &&serde_json::Value| {
        let kernel = line["kernel"].as_str().unwrap_or_default();
        kernel.ends_with("_sm90") && !kernel.starts_with("attention")
    };
    let chosen: Vec<_> = rows.iter().filter(on_wgmma).map(|line| &line["choice"]).collect();
    let keys = ["tile", "step", "stages", "splits", "cluster", "rival", "why"];
    assert!(chosen.len() > 20 && chosen.iter().all(|choice| keys.iter().all(|key| !choice[key].is_null())));
    let words = ok(&["kernels", "--preset", "sd15"]).text();
    assert!(words.contains("stages of 64") && words.contains("; not on wgmma: "), "{words}");
    let unmeasured = &ok(&["launches", "--arch", "sm_120", "--safety", "none", "--json"]).json()[0];
    assert!(unmeasured["floor_us"].is_null() && !unmeasured["bytes"].is_null());
    for (args, parts) in [
        (&["launches", "--arch", "sm_75"][..], &["--arch", "sm_90a"][..]),
        (&["launches", "--gpu", "h300"], &["--gpu", "h200"]),
        (&["launches", "--dtype", "f32"], &["--dtype", "bf16"]),
        (&["graph", "--preset", "sd9"], &["--preset", "sd21-base"]),
        (&["plan", "--batch-size", "0"], &["--batch-size"]),
        (&["plan", "--width", "18446744073709551615"], &["--width"]),
        (&["plan", "--safety", "magic"], &["--safety"]),
        (&["kernels", "--arch", "sm_120"], &["--gpu"]),
        (&["launches", "--gpu", "a100", "--arch", "sm_90a"], &["--gpu", "a100 runs sm_80"]),
        (&["kernels", "--gpu", "h100", "--arch", "sm_80"], &["--gpu", "h100 runs sm_90a"]),
        (&["cubins"], &["cubins"]),
        (&["graph", "--preset", "sd15", "--clip", "gone"], &["--preset", "--clip"]),
        (&["launches", "--preset", "sd15", "--mmap"], &["--preset", "--mmap"]),
    ] {
        place.run(&[&["inspect"], args].concat()).says(2, parts);
    }
    place.run(&["inspect", "model", "-m", "gone"]).says(3, &["gone"]);
    for words in [["--clip", "gone"], ["--vae", "gone"], ["--taesd", "gone"], ["--prediction-type", "v"]] {
        place.run(&[&["memory", "--preset", "sd15"], &words[..]].concat()).says(2, &["--preset", words[0]]);
        place.run(&[&["memory", "-m", "sd15"], &words[..]].concat()).says(2, &["sizes of sd15", words[0]]);
    }
}

#[test]
fn doctor_makes_a_picture_and_judges_it() {
    let place = Place::new();
    let text = place.run(&["doctor"]).says(0, &[]).text();
    for words in
        ["self-test  right: 8 guarded steps of the demo model on cpu", "\nbackends   cpu", "\nkernels    "]
    {
        assert!(text.contains(words), "no `{words}` in {text}");
    }
    let report = &place.run(&["doctor", "--json"]).says(0, &[]).json()[0];
    assert_eq!(report["self_test"]["passed"], true);
    assert_eq!(report["backends"][0], "cpu");
    assert_ne!(report["kernels"]["nvrtc"].is_null(), report["kernels"]["nvrtc_problem"].is_null());
    let no_gpu = report["gpus"].as_array().is_some_and(Vec::is_empty);
    assert_eq!(report["cuda_problem"].is_string(), no_gpu, "{report}");
    assert!(place.list("").is_empty());
}

#[test]
fn help_and_version_are_data_and_unknown_words_are_errors() {
    let place = Place::new();
    let help = place.run(&["generate", "--help"]).says(0, &[]).text();
    for word in ["--prompt", "--safety <METHOD>", "[default: 50]", "--cfg-scale", "embedded demo model"] {
        assert!(help.contains(word), "{word}");
    }
    assert!(place.run(&["--help"]).says(0, &[]).text().contains("generate"));
    assert_eq!(
        place.run(&["--version"]).says(0, &[]).text(),
        concat!("unguide ", env!("CARGO_PKG_VERSION"), "\n")
    );
    place.run(&["paint"]).says(2, &["paint"]);
    place.run(&[]).says(2, &["Usage"]);
    place.draw("--stepps 3").says(2, &["--stepps", "--steps"]);
}
