//! What the tests need of a Markdown file: its links, its anchors and its code.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

use super::{files, read};

/// One Markdown file.
#[derive(Default)]
pub struct Document {
    /// Targets of links and images, as written.
    pub links: Vec<String>,
    /// What `#…` may name: headings by GitHub's rule, and `<a id="…">`.
    pub anchors: HashSet<String>,
    /// Text of `code spans`.
    pub spans: Vec<String>,
    /// Fenced blocks: language and text.
    pub blocks: Vec<(String, String)>,
    /// Headings: level and text.
    pub headings: Vec<(u32, String)>,
}

/// All Markdown files of the checkout by their relative paths.
pub fn documents() -> &'static HashMap<PathBuf, Document> {
    static DOCUMENTS: OnceLock<HashMap<PathBuf, Document>> = OnceLock::new();
    DOCUMENTS.get_or_init(|| files(&[".md"]).into_iter().map(|path| (path.clone(), parse(&read(&path)))).collect())
}

/// The document at `path`.
pub fn document(path: &str) -> &'static Document {
    documents().get(Path::new(path)).unwrap_or_else(|| panic!("there is no {path}"))
}

fn parse(text: &str) -> Document {
    let mut document = Document::default();
    let mut heading: Option<(u32, String)> = None;
    let mut block: Option<(String, String)> = None;
    let mut taken: HashMap<String, u32> = HashMap::new();
    for event in Parser::new_ext(text, Options::ENABLE_TABLES | Options::ENABLE_GFM) {
        match event {
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                document.links.push(dest_url.into_string());
            }
            Event::Start(Tag::Heading { level, .. }) => heading = Some((level as u32, String::new())),
            Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(language))) => {
                block = Some((language.into_string(), String::new()));
            }
            Event::End(TagEnd::CodeBlock) => document.blocks.extend(block.take()),
            Event::End(TagEnd::Heading(_)) => {
                let (level, text) = heading.take().expect("it has begun");
                let slug = slug(&text);
                let before = taken.entry(slug.clone()).or_default();
                document.anchors.insert(if *before == 0 { slug } else { format!("{slug}-{before}") });
                *before += 1;
                document.headings.push((level, text));
            }
            Event::Text(text) => {
                if let Some((_, heading)) = &mut heading {
                    heading.push_str(&text);
                } else if let Some((_, block)) = &mut block {
                    block.push_str(&text);
                }
            }
            Event::Code(code) => {
                if let Some((_, heading)) = &mut heading {
                    heading.push_str(&code);
                }
                document.spans.push(code.into_string());
            }
            Event::Html(html) | Event::InlineHtml(html) => {
                let ids = html.split("id=\"").skip(1).filter_map(|rest| rest.split('"').next());
                document.anchors.extend(ids.map(str::to_owned));
            }
            _ => {}
        }
    }
    document
}

/// The anchor that GitHub gives to a heading: lower case, punctuation dropped, spaces as dashes.
fn slug(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect::<String>().to_lowercase()
}

#[test]
fn anchors_follow_githubs_rule() {
    let document = parse("# A `keys file`, its API\n## Stop: SIGTERM\n## Stop: SIGTERM\n<a id=\"by-hand\"></a>\n");
    let mut anchors: Vec<_> = document.anchors.iter().map(String::as_str).collect();
    anchors.sort_unstable();
    assert_eq!(anchors, ["a-keys-file-its-api", "by-hand", "stop-sigterm", "stop-sigterm-1"]);
}
