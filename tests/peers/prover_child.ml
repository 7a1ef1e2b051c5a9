let () = Peer.run_child Prover.child
