//! The two web pages: the shop at `/` and, with the routes for operators, the console at `/ops`.
//!
//! All files of `assets` are in the program. Their addresses have a version in them, made from what
//! they hold, so that browsers keep them for good; the pages, which name the addresses, are asked for
//! again each time. A page carries its style sheets itself, so that nothing has to be fetched before it
//! can be painted.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use axum::Router;
use axum::extract::Path;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rust_embed::{EmbeddedFile, RustEmbed};

use crate::error::Problem;

/// Nothing but what this server sends itself: no script in the page, no style but its sheets, which are
/// named by their hashes (CSP 3, 2.3.1), no frame around it, and no text that becomes HTML but by the
/// library's templates.
const POLICY: &str = "default-src 'none'; script-src 'self'; \
    img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'self'; \
    frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types lit-html";
/// The style sheets of the pages.
const SHEETS: [&str; 3] = ["lib/base.css", "shop/shop.css", "ops/ops.css"];
/// The mark of the pages.
const MARK: &str = "lib/mark.svg";
/// What never changes under its address.
const FOR_GOOD: &str = "public, max-age=31536000, immutable";
const ASK_AGAIN: &str = "no-cache";

#[derive(RustEmbed)]
#[folder = "assets"]
struct Assets;

/// What the pages may offer.
#[derive(Debug, Clone, Copy, Default)]
pub struct Offer {
    /// The console, on the routes for operators.
    pub console: bool,
    /// Choosing any customer, and synthetic load.
    pub trial: bool,
    /// Signing in, without which little can be seen.
    pub sign_in: bool,
}

impl Offer {
    fn words(self) -> String {
        let words = [(self.console, "console"), (self.trial, "trial"), (self.sign_in, "sign-in")];
        words.into_iter().filter_map(|(is, word)| is.then_some(word)).collect::<Vec<_>>().join(" ")
    }
}

/// The pages and all that they load.
pub fn served<S: Clone + Send + Sync + 'static>(offer: Offer) -> Router<S> {
    let version: Arc<str> = version().into();
    let page = |file: &'static str| {
        let version = Arc::clone(&version);
        get(move |headers: HeaderMap| async move { page(&headers, file, &version, offer) })
    };
    let mut router = Router::new().route("/", page("shop/index.html"));
    if offer.console {
        router = router.route("/ops", page("ops/index.html"));
    }
    let asset =
        get(move |Path((asked, path)): Path<(String, String)>, headers: HeaderMap| async move {
            // A page of another version of the program may ask; it is given what there is.
            let caching = if *asked == *version { FOR_GOOD } else { ASK_AGAIN };
            asset(&headers, &path, caching)
        });
    router.route("/assets/{version}/{*path}", asset)
}

/// A page, with the addresses of this version and what it may offer.
fn page(headers: &HeaderMap, file: &str, version: &str, offer: Offer) -> Response {
    let Some(EmbeddedFile { data, .. }) = Assets::get(file) else {
        return Problem::internal().into_response();
    };
    let html = String::from_utf8_lossy(&data);
    let html = html.replace("/assets/VERSION/", &format!("/assets/{version}/"));
    let html = html.replace("data-offer=\"\"", &format!("data-offer=\"{}\"", offer.words()));
    let Some((html, policy)) = with_parts(&html) else {
        return Problem::internal().into_response();
    };
    let mut tag = DefaultHasher::new();
    html.hash(&mut tag);
    let tag = format!("\"{:016x}\"", tag.finish());
    let mut response =
        answer(headers, html.into_bytes().into(), "text/html; charset=utf-8", &tag, ASK_AGAIN);
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    }
    response
}

/// A page with its style sheets and its mark in the place of the elements that name them, since it is
/// not painted before they are there, and the policy that lets it have these.
fn with_parts(html: &str) -> Option<(String, String)> {
    let mark = Assets::get(MARK)?;
    let image = format!("<img src=\"{MARK}\" alt=\"\">");
    let mut html = html.replace(&image, String::from_utf8_lossy(&mark.data).trim());
    let mut policy = format!("{POLICY}; style-src");
    for sheet in SHEETS {
        let link = format!("<link rel=\"stylesheet\" href=\"{sheet}\">");
        if html.contains(&link) {
            let file = Assets::get(sheet)?;
            let style = format!("<style>{}</style>", String::from_utf8_lossy(&file.data));
            html = html.replace(&link, &style);
            let hash = STANDARD.encode(file.metadata.sha256_hash());
            policy = policy + " 'sha256-" + &hash + "'";
        }
    }
    Some((html, policy))
}

fn asset(headers: &HeaderMap, path: &str, caching: &'static str) -> Response {
    let found = Assets::get(path).and_then(|file| Some((file, media_type(path)?)));
    match found {
        Some((file, media_type)) => {
            let tag = format!("\"{}\"", hex(&file.metadata.sha256_hash()[..8]));
            answer(headers, file.data, media_type, &tag, caching)
        }
        None => Problem::not_found(format!("there is no file {path}")).into_response(),
    }
}

/// Pages are not handed out as assets: their addresses are to be filled in.
fn media_type(path: &str) -> Option<&'static str> {
    match path.rsplit('.').next()? {
        "js" => Some("text/javascript; charset=utf-8"),
        "css" => Some("text/css; charset=utf-8"),
        "svg" => Some("image/svg+xml"),
        "txt" => Some("text/plain; charset=utf-8"),
        _ => None,
    }
}

fn answer(
    headers: &HeaderMap,
    content: Cow<'static, [u8]>,
    media_type: &'static str,
    tag: &str,
    caching: &'static str,
) -> Response {
    let known = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    // Compared weakly (RFC 9110, 13.1.2).
    let known =
        known.flat_map(|tags| tags.split(',')).map(|tag| tag.trim().trim_start_matches("W/"));
    let mut response = if known.into_iter().any(|known| known == tag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        content.into_response()
    };
    let set = response.headers_mut();
    set.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    set.insert(CACHE_CONTROL, HeaderValue::from_static(caching));
    set.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    // Hexadecimal digits in quotes are always a header's value.
    if let Ok(tag) = HeaderValue::from_str(tag) {
        set.insert(ETAG, tag);
    }
    response
}

/// What all files hold, in a few letters.
fn version() -> String {
    let mut files: Vec<_> = Assets::iter().collect();
    files.sort_unstable();
    let mut all = DefaultHasher::new();
    for file in files {
        let hash = Assets::get(&file).map(|found| found.metadata.sha256_hash());
        (file, hash).hash(&mut all);
    }
    format!("{:016x}", all.finish())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing into a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// What was taken as it is from lit-html 3.3.3 (npm), by SHA-256.
    const VENDORED: [(&str, &str); 6] = [
        ("lib/lit/LICENSE.txt", "2b66f9390afde29edfe4314daff93f01fb182e1178053e228120178987e5db75"),
        (
            "lib/lit/directive-helpers.js",
            "f7fb1154b8f72ed2cc08b05eaeed71c99270e9ad2d48620ed24688a1af4c2b62",
        ),
        (
            "lib/lit/directive.js",
            "3344c4f41c69cd0701d3937e8f9ef90bd845614bf6456d0b8314b7c51d415b9d",
        ),
        (
            "lib/lit/directives/live.js",
            "b305f9066319d838db797abd5a4d871537277e25f35332702bfce4452c020ecf",
        ),
        (
            "lib/lit/directives/repeat.js",
            "083140026ecd8665fedd15b17769f9d516252a9f1502f1e91e6967686ee82626",
        ),
        ("lib/lit/lit-html.js", "b878e7f95dec8a9b6e9b217faca6b6a11bad82ebc44c0caa77419ed83edd81f2"),
    ];
    /// Bytes of all that both pages load.
    const MOST_BYTES: usize = 200_000;

    fn text(file: &str) -> String {
        String::from_utf8(Assets::get(file).unwrap().data.into_owned()).unwrap()
    }

    #[test]
    fn what_others_have_written_is_what_they_have_published() {
        let files: BTreeSet<String> = Assets::iter()
            .filter(|file| file.starts_with("lib/lit/"))
            .map(Cow::into_owned)
            .collect();
        assert_eq!(files, VENDORED.map(|(file, _)| file.to_owned()).into());
        for (file, hash) in VENDORED {
            assert_eq!(hex(&Assets::get(file).unwrap().metadata.sha256_hash()), hash, "{file}");
        }
    }

    #[test]
    fn the_pages_are_small() {
        let bytes: usize = Assets::iter().map(|file| Assets::get(&file).unwrap().data.len()).sum();
        println!("{bytes} bytes");
        assert!(bytes < MOST_BYTES, "{bytes}");
    }

    #[test]
    fn a_page_names_all_its_modules_and_its_source_holds_neither_script_nor_style() {
        for page in ["shop", "ops"] {
            let html = text(&format!("{page}/index.html"));
            let main = format!("{page}/main.js");
            let ours = |file: &str| file.starts_with(page) || file.starts_with("lib/");
            let first = "lib/start.js";
            for file in Assets::iter().filter(|file| file.ends_with(".js") && ours(file)) {
                let how = if *file == main || file == first {
                    format!("<script type=\"module\" src=\"/assets/VERSION/{file}\"></script>")
                } else {
                    format!("<link rel=\"modulepreload\" href=\"/assets/VERSION/{file}\">")
                };
                assert!(html.contains(&how), "{page} does not name {file}");
            }
            assert_eq!(html.matches("<script").count(), 2);
            assert!(!html.contains("<style") && !html.contains(" style="));
        }
    }

    #[test]
    fn a_page_holds_its_mark_and_style_sheets_and_its_policy_allows_no_other() {
        for page in ["shop", "ops"] {
            let (html, policy) = with_parts(&text(&format!("{page}/index.html"))).unwrap();
            assert!(!html.contains("stylesheet"), "{page} loads a style sheet");
            assert!(html.contains(text(MARK).trim()) && !html.contains("<img"), "{page}: the mark");
            for sheet in ["lib/base.css".to_owned(), format!("{page}/{page}.css")] {
                assert!(html.contains(&format!("<style>{}</style>", text(&sheet))), "{sheet}");
                let hash = STANDARD.encode(Assets::get(&sheet).unwrap().metadata.sha256_hash());
                assert!(policy.contains(&format!(" 'sha256-{hash}'")), "{sheet}");
            }
            assert_eq!(policy.matches("sha256").count(), 2);
        }
    }

    #[test]
    fn what_is_known_already_is_not_sent_again() {
        let mut headers = HeaderMap::new();
        let first = asset(&headers, "lib/page.js", FOR_GOOD);
        assert_eq!(first.status(), StatusCode::OK);
        headers.insert(IF_NONE_MATCH, first.headers()[ETAG].clone());
        let second = asset(&headers, "lib/page.js", FOR_GOOD);
        assert_eq!(second.status(), StatusCode::NOT_MODIFIED);
        assert_eq!(second.headers()[CONTENT_SECURITY_POLICY], POLICY);
        for absent in ["lib/none.js", "shop/index.html", "../Cargo.toml"] {
            assert_eq!(asset(&headers, absent, FOR_GOOD).status(), StatusCode::NOT_FOUND);
        }
    }
}
