//! Every reason that a condition can have leads to a page, every page to a reason, and no link in the docs to nowhere.
#![cfg(test)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use kaas_crds::Reason;

fn book() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/src")
}

fn reasons() -> BTreeSet<String> {
    Reason::ALL.iter().map(ToString::to_string).collect()
}

/// Pages below a folder of the book, with their paths from its root.
fn pages(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(pages(&path));
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
    found
}

#[test]
fn every_reason_has_a_page_and_no_page_is_without_a_reason() {
    let pages: BTreeSet<String> = pages(&book().join("runbooks"))
        .iter()
        .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    let reasons = reasons();
    let missing: Vec<_> = reasons.difference(&pages).collect();
    let stray: Vec<_> = pages.difference(&reasons).collect();
    assert!(missing.is_empty(), "reasons without docs/src/runbooks/<Reason>.md: {missing:?}");
    assert!(stray.is_empty(), "pages in docs/src/runbooks without a reason: {stray:?}");
}

#[test]
fn every_page_says_what_it_means_and_who_acts() {
    for reason in reasons() {
        let text = fs::read_to_string(book().join(format!("runbooks/{reason}.md"))).unwrap();
        assert!(text.starts_with(&format!("# {reason}\n\n")), "{reason}: the title is the reason");
        assert!(text.contains("\n**Who acts:** "), "{reason}: who acts?");
    }
}

#[test]
fn the_summary_lists_every_page() {
    let summary = fs::read_to_string(book().join("SUMMARY.md")).unwrap();
    for page in pages(&book()) {
        let name = page.strip_prefix(book()).unwrap().display().to_string();
        if name != "SUMMARY.md" {
            assert_eq!(summary.matches(&format!("]({name})")).count(), 1, "SUMMARY.md lists {name} once");
        }
    }
}

#[test]
fn no_link_leads_to_nowhere() {
    for page in pages(&book()) {
        let text = fs::read_to_string(&page).unwrap();
        // What stands in code is no link, a pattern such as `[a-z](x)` for example.
        let prose: String = text.split('`').step_by(2).collect();
        for link in prose.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") || link.starts_with('#') {
                continue;
            }
            let target = page.parent().unwrap().join(link.split('#').next().unwrap());
            assert!(target.is_file(), "{}: {link} does not exist", page.display());
        }
    }
}
