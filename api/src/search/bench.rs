//! What a search costs, with fifty thousand products. Not part of the usual tests:
//! `cargo test --release -p millrace-api --lib search::bench -- --ignored --nocapture`.

use std::time::{Duration, Instant};

use millrace_shared::money::{Currency, Money};
use millrace_shared::product::{Product, Stock};

use super::asked::Asked;
use super::*;

const PRODUCTS: usize = 50_000;
const SEARCHES: usize = 2_000;

/// Draws numbers from a seed: xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap() % end
    }

    /// Small numbers more often than large ones, as words are in a language.
    fn seldom(&mut self, end: usize) -> usize {
        let limit = self.below(end) + 1;
        self.below(limit)
    }
}

fn word(mut number: usize) -> String {
    const SYLLABLES: [&str; 20] = [
        "ka", "lo", "mi", "ren", "tas", "ver", "sto", "pla", "ni", "quo", "bel", "fra", "gu",
        "hes", "ja", "wol", "zen", "cor", "du", "shi",
    ];
    let mut word = String::new();
    loop {
        word += SYLLABLES[number % 20];
        number /= 20;
        if number == 0 {
            return word + "a";
        }
    }
}

fn product(random: &mut Random, number: usize) -> Product {
    let words: Vec<String> = (0..3 + random.below(3)).map(|_| word(random.seldom(8_000))).collect();
    Product {
        product_id: format!("product-{number:06}").parse().unwrap(),
        name: words.join(" "),
        brand: format!("{} {}", word(random.seldom(300)), word(7)),
        category: word(random.seldom(60)),
        price: Money::new(
            i64::try_from(random.below(500_000)).unwrap(),
            if random.below(10) == 0 { Currency::EUR } else { Currency::USD },
        ),
        active: random.below(20) > 0,
        stock: Stock { available: i64::try_from(random.below(5)).unwrap(), ..Stock::default() },
        version: 1,
    }
}

/// Memory of this process in MB.
fn memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() / 1024
}

/// The query of a search as a shop's users ask: one to three words, half typed or with an error,
/// some filters, any order.
fn query(random: &mut Random) -> String {
    let mut words: Vec<String> =
        (0..=random.below(3)).map(|_| word(random.seldom(8_000))).collect();
    let last = words.last_mut().unwrap();
    match random.below(3) {
        0 => last.truncate(1 + random.below(last.len())),
        1 => last.replace_range(1..2, "x"),
        _ => {}
    }
    let mut query = format!("q={}&limit=20", words.join("+"));
    if random.below(2) == 0 {
        query = format!("{query}&category={}", word(random.below(20)));
    }
    query += ["", "&inStock=true", "&active=true", "&currency=USD&minPrice=1000"][random.below(4)];
    query + ["", "&sort=price", "&sort=-price", "&sort=newest"][random.below(4)]
}

#[test]
#[ignore = "a measurement, for a release build"]
#[allow(clippy::print_stdout, reason = "it is what the measurement is for")]
fn searches_of_fifty_thousand_products_are_fast() {
    let before = memory();
    let (search, mut writer) = Search::new().unwrap();
    let mut random = Random(42);
    let products: Vec<Product> = (0..PRODUCTS).map(|number| product(&mut random, number)).collect();
    let events: Vec<String> = products.iter().map(|p| serde_json::to_string(p).unwrap()).collect();
    drop(products);
    let start = Instant::now();
    for chunk in events.chunks(5_000) {
        for event in chunk {
            let product: Product = serde_json::from_str(event).unwrap();
            let slot = search.change(|catalogue| catalogue.put(product.clone(), Some(1))).unwrap();
            writer.put(slot, &product).unwrap();
        }
        writer.commit().unwrap();
    }
    let filled = start.elapsed();
    drop(events);
    println!("filled in {filled:?}; {} MB more", memory() - before);
    for (what, fixed) in [
        ("as users ask", None),
        ("one letter", Some("q=k")),
        ("all, with facets", Some("q=")),
        ("all by price", Some("q=&sort=price")),
    ] {
        let mut times = Vec::new();
        let mut hits = 0;
        for _ in 0..SEARCHES {
            let query = fixed.map_or_else(|| query(&mut random), str::to_owned);
            let Ok(Asked::Search { words, criteria }) = Asked::parse(&query) else {
                panic!("{query}")
            };
            let start = Instant::now();
            hits += search.find(&words, &criteria).unwrap().total;
            times.push(start.elapsed());
        }
        times.sort_unstable();
        let at = |share: usize| times[times.len() * share / 1000];
        let (p50, p99, worst) = (at(500), at(990), times[times.len() - 1]);
        println!("{what}: p50 {p50:?}, p99 {p99:?}, worst {worst:?}; {} hits", hits / SEARCHES);
        assert!(p99 < Duration::from_millis(10), "{what}: {p99:?}");
    }
}
