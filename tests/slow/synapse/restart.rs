//! A client that is restarted with its login and its store.

use matrix_sdk::{
    RoomState, ruma::events::room::message::RoomMessageEventContent, store::RoomLoadSettings,
};
use matrix_sdk_postgres::testing;

use super::{bodies, client, login, ran_with_synapse, room_of, sync};

#[tokio::test(flavor = "multi_thread")]
async fn a_client_logs_in_restarts_and_decrypts() {
    if ran_with_synapse("synapse::restart::a_client_logs_in_restarts_and_decrypts") {
        return;
    }
    let database = testing::database().unwrap();
    let url = database.url();
    let (alice, bob) = (client(&url, "alice").await, client(&url, "bob").await);
    login(&alice, "ALICE").await;
    login(&bob, "BOB").await;
    let room_id = room_of(&alice, &bob).await;
    // Bob uploads his keys, and Alice receives the update.
    sync(&bob).await;
    sync(&alice).await;
    let room = alice.get_room(&room_id).unwrap();
    for number in 0..5 {
        let content = RoomMessageEventContent::text_plain(format!("before {number}"));
        room.send(content).await.unwrap();
    }
    sync(&bob).await;
    let expected: Vec<String> = (0..5).map(|number| format!("before {number}")).collect();
    assert_eq!(bodies(&bob.get_room(&room_id).unwrap(), 5).await, expected);

    let session = bob.matrix_auth().session().unwrap();
    drop(bob);
    for number in 5..8 {
        let content = RoomMessageEventContent::text_plain(format!("before {number}"));
        room.send(content).await.unwrap();
    }
    let bob = client(&url, "bob").await;
    bob.matrix_auth().restore_session(session, RoomLoadSettings::default()).await.unwrap();
    // Synapse serves the first sync from its cache of the last response; the second has the rest.
    sync(&bob).await;
    sync(&bob).await;
    let bobs_room = bob.get_room(&room_id).unwrap();
    assert_eq!(bobs_room.state(), RoomState::Joined);
    let expected: Vec<String> = (0..8).map(|number| format!("before {number}")).collect();
    assert_eq!(bodies(&bobs_room, 8).await, expected);

    // Bob can send, too, and Alice can read it.
    bobs_room.send(RoomMessageEventContent::text_plain("an answer")).await.unwrap();
    sync(&alice).await;
    assert_eq!(bodies(&room, 1).await, ["an answer"]);
}
