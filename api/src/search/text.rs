//! The index of the products' texts. It knows words and slots only: all that is filtered, counted or
//! sorted by stands in the catalogue.
//!
//! How well a product fits depends on its own texts and on the words that are looked for, and on no
//! other product. So a score never changes under a client that pages.

use millrace_shared::product::Product;
use tantivy::query::{DfaWrapper, FuzzyTermQuery};
use tantivy::schema::{
    FAST, Field, INDEXED, IndexRecordOption, Schema, TextFieldIndexing, TextOptions,
};
use tantivy::tokenizer::{
    AsciiFoldingFilter, LowerCaser, RemoveLongFilter, SimpleTokenizer, TextAnalyzer,
};
use tantivy::{
    Index, IndexReader, IndexWriter, ReloadPolicy, SegmentReader, TantivyDocument, Term,
};

use super::catalogue::Slot;

/// Bytes that the writer gathers before it makes a segment of them: the least that is allowed.
const WRITER_MEMORY: usize = 15_000_000;
/// Longer words are not indexed.
const LONGEST_WORD: usize = 64;
/// The words of one search; further ones are not looked at.
const MOST_WORDS: usize = 10;
/// The name of the analyzer, and of the field with the slot.
const WORDS: &str = "words";
const SLOT: &str = "slot";
/// How much a word that fits exactly counts, one that begins so, and one with typing errors.
const EXACT: u16 = 8;
const BEGINS: u16 = 4;
const ALIKE: u16 = 1;

/// A field with words, and how much a word in it counts.
#[derive(Debug, Clone, Copy)]
struct Words {
    field: Field,
    weight: u16,
    /// Whether typing errors are forgiven in it.
    forgiving: bool,
}

/// The index, to be searched.
pub struct Text {
    reader: IndexReader,
    fields: [Words; 4],
}

/// The index, to be written. There is one writer.
pub struct Writer {
    index: IndexWriter,
    reader: IndexReader,
    fields: [Words; 4],
    slot: Field,
    changed: bool,
}

/// A new, empty index in memory.
pub fn index() -> tantivy::Result<(Text, Writer)> {
    let mut schema = Schema::builder();
    let indexing = TextFieldIndexing::default()
        .set_tokenizer(WORDS)
        .set_index_option(IndexRecordOption::Basic)
        .set_fieldnorms(false);
    let options = TextOptions::default().set_indexing_options(indexing);
    let fields = [("name", 4, true), ("brand", 3, true), ("category", 2, true), ("id", 4, false)];
    let fields = fields.map(|(name, weight, forgiving)| Words {
        field: schema.add_text_field(name, options.clone()),
        weight,
        forgiving,
    });
    let slot = schema.add_u64_field(SLOT, INDEXED | FAST);
    let index = Index::create_in_ram(schema.build());
    index.tokenizers().register(WORDS, analyzer());
    let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into()?;
    let writing = index.writer_with_num_threads(1, WRITER_MEMORY)?;
    let text = Text { reader: IndexReader::clone(&reader), fields };
    Ok((text, Writer { index: writing, reader, fields, slot, changed: false }))
}

fn analyzer() -> TextAnalyzer {
    TextAnalyzer::builder(SimpleTokenizer::default())
        .filter(RemoveLongFilter::limit(LONGEST_WORD))
        .filter(LowerCaser)
        .filter(AsciiFoldingFilter)
        .build()
}

/// The words that a client looks for, as they stand in the index.
pub fn words(text: &str) -> Vec<String> {
    let mut analyzer = analyzer();
    let mut tokens = analyzer.token_stream(text);
    let mut words = Vec::new();
    while words.len() < MOST_WORDS
        && let Some(token) = tokens.next()
    {
        words.push(token.text.clone());
    }
    words
}

/// How many typing errors a word may have: the longer it is, the more. In numbers nothing is
/// forgiven: another number is another thing.
fn typing_errors(word: &str) -> u8 {
    match word.chars().count() {
        _ if word.contains(|c: char| c.is_ascii_digit()) => 0,
        0..=4 => 0,
        5..=8 => 1,
        _ => 2,
    }
}

impl Writer {
    /// Indexes a product's texts in place of those that it had.
    pub fn put(&mut self, slot: Slot, product: &Product) -> tantivy::Result<()> {
        self.index.delete_term(Term::from_field_u64(self.slot, slot.into()));
        let texts = [&product.name, &product.brand, &product.category, product.product_id.as_str()];
        let mut document = TantivyDocument::new();
        document.add_u64(self.slot, slot.into());
        for (words, text) in self.fields.iter().zip(texts) {
            document.add_text(words.field, text);
        }
        self.index.add_document(document)?;
        self.changed = true;
        Ok(())
    }

    /// Whether something is not to be found yet.
    pub fn is_changed(&self) -> bool {
        self.changed
    }

    /// Lets everything be found that was put.
    pub fn commit(&mut self) -> tantivy::Result<()> {
        self.index.commit()?;
        self.reader.reload()?;
        self.changed = false;
        Ok(())
    }
}

impl Text {
    /// The products in which all words occur, the last one at the beginning of a word at least, with
    /// how well they fit.
    pub fn matches(&self, words: &[String]) -> tantivy::Result<Vec<(Slot, u32)>> {
        let asked: Vec<Vec<(Words, DfaWrapper)>> = words
            .iter()
            .enumerate()
            .map(|(at, word)| self.automata(word, at + 1 == words.len()))
            .collect::<tantivy::Result<_>>()?;
        let mut found = Vec::new();
        for segment in self.reader.searcher().segment_readers() {
            let mut scores: Option<Vec<u16>> = None;
            for (word, automata) in words.iter().zip(&asked) {
                let mut best = vec![0; segment.max_doc() as usize];
                for (words, automaton) in automata {
                    score(segment, *words, automaton, word, &mut best)?;
                }
                // What an earlier word did not fit stays out.
                scores = Some(match scores {
                    None => best,
                    Some(before) => before.into_iter().zip(best).map(both).collect(),
                });
            }
            let slots = segment.fast_fields().u64(SLOT)?;
            let alive = segment.alive_bitset();
            let fitting = (0..).zip(scores.unwrap_or_default()).filter(|(_, score)| *score > 0);
            for (document, score) in fitting {
                if alive.is_none_or(|alive| alive.is_alive(document))
                    && let Some(slot) = slots.first(document)
                {
                    found.extend(Slot::try_from(slot).map(|slot| (slot, u32::from(score))));
                }
            }
        }
        Ok(found)
    }

    /// What finds a word, in each field.
    fn automata(&self, word: &str, begins: bool) -> tantivy::Result<Vec<(Words, DfaWrapper)>> {
        let automaton = |words: Words| {
            let term = Term::from_field_text(words.field, word);
            let errors = if words.forgiving { typing_errors(word) } else { 0 };
            let query = if begins {
                FuzzyTermQuery::new_prefix(term, errors, true)
            } else {
                FuzzyTermQuery::new(term, errors, true)
            };
            Ok((words, query.automaton()?))
        };
        self.fields.into_iter().map(automaton).collect()
    }
}

fn both((one, other): (u16, u16)) -> u16 {
    if one == 0 || other == 0 { 0 } else { one + other }
}

/// Gives each document of a segment the best of its score and that of the words in one field.
fn score(
    segment: &SegmentReader,
    words: Words,
    automaton: &DfaWrapper,
    word: &str,
    best: &mut [u16],
) -> tantivy::Result<()> {
    let inverted = segment.inverted_index(words.field)?;
    let mut terms = inverted.terms().search(automaton).into_stream()?;
    while terms.advance() {
        let fits = match terms.key() {
            key if key == word.as_bytes() => EXACT,
            key if key.starts_with(word.as_bytes()) => BEGINS,
            _ => ALIKE,
        };
        let score = fits * words.weight;
        let mut postings =
            inverted.read_block_postings_from_terminfo(terms.value(), IndexRecordOption::Basic)?;
        while !postings.docs().is_empty() {
            for document in postings.docs() {
                if let Some(best) = best.get_mut(*document as usize) {
                    *best = score.max(*best);
                }
            }
            postings.advance();
        }
    }
    Ok(())
}

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Text").field("fields", &self.fields).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("changed", &self.changed).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use millrace_shared::money::{Currency, Money};
    use millrace_shared::product::Stock;

    use super::*;

    const NAMES: [&str; 6] =
        ["Chai", "Chang", "Crème Brûlée", "Uncle Bob's Dried Pears", "Screwdriver", "Model 2024"];

    fn found(text: &Text, query: &str) -> Vec<Slot> {
        let mut found = text.matches(&words(query)).unwrap();
        found.sort_by_key(|(slot, score)| (std::cmp::Reverse(*score), *slot));
        found.into_iter().map(|(slot, _)| slot).collect()
    }

    fn product(name: &str) -> Product {
        Product {
            product_id: "X-1".parse().unwrap(),
            name: name.to_owned(),
            brand: "Exotic".to_owned(),
            category: "Goods".to_owned(),
            price: Money::new(1, Currency::USD),
            active: true,
            stock: Stock::default(),
            version: 1,
        }
    }

    #[test]
    fn words_are_found_with_typing_errors_by_length_and_the_last_by_its_beginning() {
        let (text, mut writer) = index().unwrap();
        for (slot, name) in (0..).zip(NAMES) {
            writer.put(slot, &product(name)).unwrap();
        }
        assert!(found(&text, "chai").is_empty(), "nothing is found before the commit");
        writer.commit().unwrap();
        for (query, expected) in [
            ("chai", vec![0]),
            ("CHAI", vec![0]),
            ("cha", vec![0, 1]),
            ("chia", vec![]),
            ("chnag", vec![1]),
            ("creme brulee", vec![2]),
            ("bruleé", vec![2]),
            ("pears uncle", vec![3]),
            ("paers", vec![3]),
            ("dreid pea", vec![3]),
            ("scrwdrivr", vec![4]),
            ("scrwdrvre", vec![]),
            ("screw", vec![4]),
            // Only the last word may be a beginning.
            ("screw exotic", vec![]),
            ("exotic screw", vec![4]),
            ("2024", vec![5]),
            ("2025", vec![]),
            ("chai pears", vec![]),
            ("exotc", vec![0, 1, 2, 3, 4, 5]),
            ("X-1", vec![0, 1, 2, 3, 4, 5]),
            ("y-1", vec![]),
        ] {
            assert_eq!(found(&text, query), expected, "{query}");
        }
        // What is exact comes before what only begins so, and that before what is alike.
        writer.put(1, &product("Pensil")).unwrap();
        writer.put(2, &product("Pencils")).unwrap();
        writer.put(3, &product("Red pencil")).unwrap();
        writer.commit().unwrap();
        assert_eq!(found(&text, "pencil"), [3, 2, 1]);
        assert!(found(&text, "chang").is_empty(), "the old text is gone");
    }
}
