let () = Peer.run_parent Prover.parent
