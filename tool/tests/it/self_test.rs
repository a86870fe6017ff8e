//! `self-test`.

use crate::support::Place;

#[tokio::test]
async fn a_throwaway_account_goes_through_everything_and_is_gone() {
    let place = Place::new();
    let early = place.run(&["self-test"]).await.expect(3).out;
    assert!(early.contains("FAILED  open") && early.contains("version 0"), "{early}");
    assert!(!early.contains("FAILED  delete"), "{early}");

    let (bot, _) = place.filled("bot").await;
    let passed = place.run(&["self-test"]).await.expect(0).out;
    for step in ["open", "write", "reopen", "cut the connections (", "read", "delete"] {
        assert!(passed.contains(&format!("ok      {step}")), "{step}: {passed}");
    }
    assert!(passed.contains(" ended)"), "{passed}");
    assert_eq!(place.number("SELECT count(*) FROM matrix_sdk.accounts").await, 1);
    assert_eq!(place.number("SELECT count(*) FROM matrix_sdk.custom_values").await, 1);
    // The connections that were cut were not the bot's.
    bot.commit_count().await.unwrap();
    let json = place.run_unlocked(&["self-test", "--json"]).await.expect(0).json();
    assert_eq!(json["steps"].as_array().unwrap().len(), 6);
}

#[tokio::test]
async fn a_role_that_may_not_write_fails_it() {
    let place = Place::new();
    place.run(&["self-test", "--migrate"]).await.expect(0);
    let name = place.database.name();
    let client = place.client().await;
    let sql = format!("ALTER DATABASE {name} SET default_transaction_read_only = on");
    client.batch_execute(&sql).await.unwrap();
    let failed = place.run(&["self-test"]).await.expect(3).out;
    assert!(failed.contains("default_transaction_read_only"), "{failed}");
}
