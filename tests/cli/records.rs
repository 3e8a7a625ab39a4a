//! Figures in documents that the program prints itself: they are what it prints.

use std::path::Path;

use crate::process::Place;

/// Every block of a document that shows a command shows lines of its output, in their order.
#[test]
fn documents_show_what_the_program_prints() {
    for document in ["benches/RESULTS.md", "benches/PREDICTIONS.md"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(document);
        let text = std::fs::read_to_string(path).expect("a document");
        let blocks: Vec<&str> = text.split("```\n$ unguide ").skip(1).collect();
        assert!(blocks.len() > 3, "{document} shows {} commands", blocks.len());
        for block in blocks {
            let (block, _) = block.split_once("```").expect("a block has an end");
            let (command, shown) = block.split_once('\n').expect("a command, and what it prints");
            let ran = Place::new().run(&command.split(' ').collect::<Vec<_>>());
            ran.says(0, &[]);
            let text = ran.text();
            let mut printed = text.lines().map(str::trim_end);
            for line in shown.lines() {
                assert!(printed.any(|found| found == line), "{document}: {command} does not print\n{line}");
            }
        }
    }
}
