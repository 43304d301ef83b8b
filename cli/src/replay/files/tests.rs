use clap::Parser;

use super::*;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: ReplayArgs,
}

fn args(more: &[&str]) -> ReplayArgs {
    let files = ["replay", "--products=p", "--customers=c", "--orders=o", "--lines=l"];
    let target = "--target=http://127.0.0.1:1";
    Cli::try_parse_from(files.iter().chain(more).chain([&target])).unwrap().args
}

const P: &str = "productId,name,brand,category,priceMinor,currency,stock,discontinued\n\
                 1,Chai,Leaf,Tea,1800,USD,39,1\n2,\"Syrup, sweet\",Bee,Food,1000,USD,13,0\n";
const C: &str = "customerId,name,city\nANNA,Anna's Shop,Bern\n";
const O: &str = "orderId,customerId,orderDate\n10,ANNA,1996\n11,ANNA,1997\n";
const L: &str = "orderId,productId,quantity,unitPriceThenMinor,discount\n\
                 11,1,5,1440,0\n10,2,3,1000,0.15\n10,1,2,1440,0\n";

fn shop(args: &ReplayArgs, [p, c, o, l]: [&str; 4]) -> Result<Shop, String> {
    let table = |file: &'static str, text| {
        let path = format!("{file}.csv");
        File::new(file, path, std::io::Cursor::new(String::from(text)), &args.columns)
    };
    let shop = || {
        join(args, table(PRODUCTS, p)?, table(CUSTOMERS, c)?, table(ORDERS, o)?, table(LINES, l)?)
    };
    shop().map_err(|error| format!("{error:#}"))
}

fn refused(more: &[&str], files: [&str; 4]) -> String {
    shop(&args(more), files).unwrap_err()
}

#[test]
fn lines_join_their_orders_in_the_files_order() {
    let shop = shop(&args(&[]), [P, C, O, L]).unwrap();
    let lines = |order: usize| -> Vec<(String, u32)> {
        let lines = &shop.orders[order].place.lines;
        lines.iter().map(|line| (line.product_id.to_string(), line.quantity)).collect()
    };
    assert_eq!(shop.orders.iter().map(|o| o.name.as_str()).collect::<Vec<_>>(), ["10", "11"]);
    assert_eq!(lines(0), [("2".to_owned(), 3), ("1".to_owned(), 2)]);
    assert_eq!(lines(1), [("1".to_owned(), 5)]);
    assert!(shop.orders[0].place.lines[0].unit_price.is_none());
    assert_eq!(shop.products[1].define.name, "Syrup, sweet");
    assert_eq!(shop.products[0].define.initial_stock, Some(39));
    assert!(shop.products[0].retired && !shop.products[1].retired);
    assert_eq!(shop.customers[0].credit_limit, None);
}

#[test]
fn options_stand_in_for_columns() {
    let p = "productId,name,brand,category,priceMinor,currency\n1,Chai,Leaf,Tea,1800,USD\n2,S,B,F,1,USD\n";
    let more = ["--stock=7", "--include-discontinued", "--credit-limit=500", "--payment=account"];
    let shop = shop(&args(&more), [p, C, O, L]).unwrap();
    assert_eq!(shop.products[0].define.initial_stock, Some(7));
    assert!(!shop.products[0].retired);
    assert_eq!(shop.customers[0].credit_limit, Some(Money::new(500, Currency::USD)));
    assert_eq!(shop.orders[0].place.payment, PaymentMethod::Account {});
    assert!(refused(&[], [p, C, O, L]).contains("products.csv: there is no column \"stock\""));
}

#[test]
fn lines_name_the_price_that_was_asked_for() {
    let price =
        |more| shop(&args(&[more]), [P, C, O, L]).unwrap().orders[1].place.lines[0].unit_price;
    assert_eq!(price("--price=catalogue"), Some(Money::new(1800, Currency::USD)));
    assert_eq!(price("--price=then"), Some(Money::new(1440, Currency::USD)));
}

#[test]
fn columns_may_have_other_names() {
    let o = "order_no,cust\n10,ANNA\n11,ANNA\n";
    let l = "ref,productId,quantity\n10,1,1\n11,1,1\n";
    let more = [
        "--column=orderId=order_no",
        "--column=lines.orderId=ref",
        "--column=orders.customerId=cust",
    ];
    assert_eq!(shop(&args(&more), [P, C, o, l]).unwrap().orders.len(), 2);
    let error = refused(&more[..2], [P, C, o, l]);
    assert!(error.starts_with("orders.csv: there is no column \"customerId\""), "{error}");
    assert!(parse_column("orderNo=x").unwrap_err().contains("\"orderNo\" is not one of"));
    assert!(parse_column("lines.brand=x").unwrap_err().contains("\"brand\" is not one of"));
    assert!(parse_column("items.orderId=x").is_err());
    assert!(parse_column("orderId").is_err());
}

#[test]
fn a_byte_order_mark_is_no_part_of_the_first_column() {
    assert!(shop(&args(&[]), [&format!("\u{feff}{P}"), C, O, L]).is_ok());
}

#[test]
fn what_does_not_join_is_named() {
    let orphan = format!("{L}12,1,1,1,0\n");
    assert_eq!(
        refused(&[], [P, C, O, &orphan]),
        "lines.csv:5: orderId: the order 12 is not in orders.csv"
    );
    let bare = format!("{O}12,ANNA,1998\n");
    assert_eq!(
        refused(&[], [P, C, &bare, L]),
        "orders.csv:4: orderId: the order 12 has no lines in lines.csv: \"12\""
    );
}

#[test]
fn bad_values_are_named_by_file_line_and_column() {
    let cases = [
        ([&P.replace("1800", "18.00"), C, O, L], "products.csv:2: priceMinor: "),
        ([&P.replace("1000,USD", "1000,US"), C, O, L], "products.csv:3: currency: "),
        ([&P.replace("13,0", "13,maybe"), C, O, L], "products.csv:3: discontinued: "),
        ([&P.replace("2,\"", "1,\""), C, O, L], "products.csv:3: productId: "),
        ([&P.replace("Chai", ""), C, O, L], "products.csv:2: name: "),
        ([P, &C.replace("ANNA", "AN NA"), O, L], "customers.csv:2: customerId: "),
        ([P, C, &O.replace("11,", "10,"), L], "orders.csv:3: orderId: "),
        ([P, C, O, &L.replace("11,1,5", "11,1,-5")], "lines.csv:2: quantity: "),
        ([P, C, O, &L.replace("10,1,2", "10,2,2")], "lines.csv:4: productId: "),
        ([P, C, &O.replace("10,", "1 0,"), L], "orders.csv:2: orderId: "),
        ([P, C, O, &L.replace("11,1,5", "11,1,0")], "lines.csv:2: quantity: "),
        ([P, C, O, &L.replace("11,1,5", "11,3,5")], "lines.csv:2: productId: "),
        ([P, C, &O.replace("11,ANNA", "11,DORA"), L], "orders.csv:3: customerId: "),
    ];
    for (files, start) in cases {
        let error = refused(&[], files);
        assert!(error.starts_with(start), "{error:?} does not start with {start:?}");
    }
    let short = refused(&[], [P, C, O, &format!("{L}11,2\n")]);
    assert!(short.starts_with("lines.csv: ") && short.contains("line: 5"), "{short}");
}

#[test]
fn the_command_line_refuses_what_contradicts_itself() {
    let files = ["replay", "--products=p", "--customers=c", "--orders=o", "--lines=l"];
    for bad in ["--via=smtp", "--rate=0", "--concurrency=0", "--timeout=0", "--column=x=y"] {
        assert!(Cli::try_parse_from(files.iter().chain([&bad])).is_err(), "{bad}");
    }
}
